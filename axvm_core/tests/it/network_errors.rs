//! What a user reads when a network card cannot be had: `axvm` itself, run with bad words and on a host that lacks things.

use std::fs;
use std::os::unix::net::UnixDatagram;

use crate::errors::{HOST, USAGE, check};

#[test]
fn a_card_that_cannot_be_is_refused_with_what_would_be_right() {
    let directory = tempfile::tempdir().unwrap();
    check(
        directory.path(),
        USAGE,
        &[
            ("-k k --net tap0", &["--net tap0: 'tap0' is unknown; there are user, tap=NAME, fd=N"]),
            ("-k k --net mtu=1500", &["--net mtu=1500", "what the card is connected to is missing"]),
            ("-k k --net user,fd=3", &["--net user,fd=3", "a card has one cable"]),
            ("-k k --net fd=0", &["--net fd=0", "descriptor 0 is standard input", "from 3 on"]),
            ("-k k --net user,mtu=9", &["--net user,mtu=9", "from 68 to 65535"]),
            ("-k k --net user,forward=22", &["--net user,forward=22", "'22' is no forward", "2222:22"]),
            ("-k k --net fd=3,forward=1:2", &["are for --net user"]),
            ("-k k --net dgram=a", &["--net dgram=a", "two paths without a colon", "127.0.0.1:4001"]),
            ("-k k --net user,mac=1", &["--net user,mac=1", "02:00:00:00:00:01"]),
            ("-k k --net user,hostfwd=tcp::2222-:22", &["'hostfwd=", "forward=HOST:GUEST is what leads to the guest"]),
            ("-k k --net passt", &["'passt' is unknown", "user is what connects by passt"]),
            (
                "-k k --net tap=a,mac=02:00:00:00:00:01 --net tap=b,mac=02:00:00:00:00:01",
                &["net0 has this address too"],
            ),
            ("-k k --net fd=3 --net fd=3", &["--net fd=3: net0 has this descriptor too"]),
            ("-k k --network=user", &["There is no option --network=user", "--net user"]),
            ("-k k -nic user", &["There is no option -nic", "--net user"]),
            ("-k k -netdev user,id=n", &["There is no option -netdev", "--net user"]),
            ("-k k --net-device x", &["There is no option --net-device", "--net tap=NAME"]),
            ("-k k --tap tap0", &["There is no option --tap", "--net tap=NAME"]),
        ],
    );
}

#[test]
fn a_cable_that_cannot_be_plugged_in_names_card_and_place() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let _remote = UnixDatagram::bind(directory.path().join("remote")).unwrap();
    fs::write(directory.path().join("k"), crate::images::bzimage()).unwrap();
    check(
        directory.path(),
        HOST,
        &[
            (
                "-k k --net stream=none",
                &["Cannot connect net0 to none", "No such file", "start what listens there first"],
            ),
            ("-k k --net stream=file", &["Cannot connect net0 to file", "Connection refused"]),
            ("-k k --net dgram=a:none", &["Cannot connect net0 to none", "must be there before"]),
            ("-k k --net dgram=file:remote", &["Cannot make the end of net0 at file", "in use"]),
            ("-k k --net dgram=remote:remote", &["Cannot make the end of net0 at remote", "in use"]),
            ("-k k --net dgram=192.0.2.1:9:127.0.0.1:9", &["net0 at 192.0.2.1:9", "an address of this host"]),
            ("-k k --net fd=99", &["Cannot use descriptor 99 for net0", "it is not open", "that starts AxVM opens it"]),
        ],
    );
    assert!(!directory.path().join("a").exists(), "a socket file is left");
    assert!(directory.path().join("file").exists(), "a file of the user is gone");
}
