//! The page walk against the slow model, against tables that were built to be walked, and by hand.

use std::collections::HashMap;

use proptest::prelude::*;

use super::model::{Memory, translate};
use super::*;
use crate::registers::Segment;

/// Reads entries from a map; all else is no RAM.
fn walk(paging: &Paging, memory: &Memory, address: u64) -> Walk {
    paging.walk(address, &|at, data| {
        let Some(raw) = memory.0.get(&at.0) else { return false };
        data.copy_from_slice(&raw.to_le_bytes()[..data.len()]);
        true
    })
}

/// Entries that are good often enough for a walk to reach the last level.
fn entries() -> impl Strategy<Value = u64> {
    let frame = prop_oneof![16 => 0_u64..8, 1 => Just(8)].prop_map(|frame| frame << 12);
    let wild = prop_oneof![24 => Just(0), 2 => (0_u32..64).prop_map(|bit| 1 << bit), 1 => any::<u64>()];
    let flags = prop_oneof![
        12 => Just(0x07_u64),
        12 => Just(0x01),
        4 => Just(0x87),
        2 => 0_u64..0x200,
        1 => Just(1 << 63 | 0x163),
    ];
    (frame, flags, wild).prop_map(|(frame, flags, wild)| frame | flags | wild)
}

fn schemes() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        1 => Just(Scheme::Off),
        8 => Just(Scheme::Bits32),
        8 => Just(Scheme::Pae),
        16 => Just(Scheme::FourLevel),
        16 => Just(Scheme::FiveLevel),
    ]
}

fn pagings() -> impl Strategy<Value = Paging> {
    let cr3 = prop_oneof![24 => (0_u64..8).prop_map(|page| page << 12), 1 => any::<u64>()];
    (schemes(), cr3, 32_u8..=52, any::<[bool; 3]>()).prop_map(
        |(scheme, cr3, physical_bits, [large_pages, gib_pages, execute_disable])| Paging {
            large_pages,
            gib_pages,
            execute_disable,
            ..Paging::new(scheme, cr3, physical_bits)
        },
    )
}

/// An address whose indices are all small, so that few entries are a memory; now and then any.
fn addresses() -> impl Strategy<Value = u64> {
    let small = proptest::array::uniform5(0_u64..2)
        .prop_map(|[a, b, c, d, e]| a << 12 | b << 21 | c << 30 | d << 39 | e << 48 | 0x123);
    let low = small.clone().prop_map(|low| low & 0x7fff_ffff_ffff);
    let for_32_bits = (0_u64..4, 0_u64..4).prop_map(|(a, b)| a << 22 | b << 12 | 0x456);
    let high = small.clone().prop_map(|low| low | 0xffff_8000_0000_0000);
    prop_oneof![4 => small, 8 => low, 4 => for_32_bits, 1 => high, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Garbage of every kind: the walk and the model agree on the page, or on where it ends and why.
    #[test]
    fn the_walk_is_the_models(
        paging in pagings(),
        address in addresses(),
        raw in proptest::collection::vec(entries(), 32),
    ) {
        let size = if paging.scheme == Scheme::Bits32 { 4 } else { 8 };
        let memory = Memory((0..).zip(raw).map(|(n, raw)| (n / 4 * 0x1000 + n % 4 * size, raw)).collect());
        let walk = walk(&paging, &memory, address);
        prop_assert_eq!(walk.end, translate(&paging, &memory, address), "{:?} {:?}", paging, walk);
    }

    /// Tables that map one page lead there, whatever the page.
    #[test]
    fn what_was_mapped_is_found(
        (scheme, depth) in prop_oneof![
            Just((Scheme::Bits32, 1)), Just((Scheme::Bits32, 2)), Just((Scheme::Pae, 2)), Just((Scheme::Pae, 3)),
            Just((Scheme::FourLevel, 2)), Just((Scheme::FourLevel, 3)), Just((Scheme::FourLevel, 4)),
            Just((Scheme::FiveLevel, 3)), Just((Scheme::FiveLevel, 5)),
        ],
        address in any::<u64>(),
        frame in any::<u64>(),
        [write, user, execute] in any::<[bool; 3]>(),
        restricted in 0_usize..5,
    ) {
        let (bits, shifts): (u32, &[u32]) = match scheme {
            Scheme::Bits32 => (32, &[22, 12]),
            Scheme::Pae => (32, &[30, 21, 12]),
            Scheme::FourLevel => (48, &[39, 30, 21, 12]),
            _ => (57, &[48, 39, 30, 21, 12]),
        };
        let linear = if bits == 32 { address & 0xffff_ffff } else { ((address << (64 - bits)) as i64 >> (64 - bits)) as u64 };
        let len = 1_u64 << shifts[depth - 1];
        let gpa = if scheme == Scheme::Bits32 { frame & 0xffff_f000 } else { frame & 0x7f_ffff_f000 } & !(len - 1);
        let mut memory = HashMap::new();
        let (mut upper, size) = (bits, if scheme == Scheme::Bits32 { 4 } else { 8 });
        for (n, &shift) in shifts[..depth].iter().enumerate() {
            let index = linear >> shift & ((1 << (upper - shift)) - 1);
            let last = n + 1 == depth;
            // One level restricts, or none; PAE's first cannot.
            let open = n != restricted % depth || scheme == Scheme::Pae && n == 0;
            let target = if last { gpa } else { (n as u64 + 2) << 12 };
            let mut raw = target | 1;
            if scheme != Scheme::Pae || n > 0 {
                raw |= u64::from(open || write) << 1 | u64::from(open || user) << 2;
                raw |= u64::from(!(open || execute) && scheme != Scheme::Bits32) << 63;
            }
            raw |= u64::from(last && shift > 12) << 7;
            memory.insert(((n as u64 + 1) << 12) + index * size, raw);
            upper = shift;
        }
        let walk = walk(&Paging::new(scheme, 1 << 12, 40), &Memory(memory), linear);
        prop_assert_eq!(walk.steps.len(), depth);
        let page = walk.end.unwrap();
        prop_assert_eq!((page.gpa.0, page.len), (gpa + linear % len, len));
        let restricts = !(scheme == Scheme::Pae && restricted % depth == 0);
        prop_assert_eq!((page.rights.write, page.rights.user), (write || !restricts, user || !restricts));
        prop_assert_eq!(page.rights.execute, execute || !restricts || scheme == Scheme::Bits32);
    }
}

#[test]
fn canonical_addresses_end_where_the_bits_do() {
    for (address, bits, is) in [
        (0x7fff_ffff_ffff, 48, true),
        (0x8000_0000_0000, 48, false),
        (0xffff_8000_0000_0000, 48, true),
        (0xffff_7fff_ffff_ffff, 48, false),
        (0x8000_0000_0000, 57, true),
        (1 << 56, 57, false),
    ] {
        assert_eq!(is_canonical(address, bits), is, "{address:#x}");
    }
}

#[test]
fn the_scheme_follows_from_the_registers() {
    let mut system = SystemRegisters { cs: Segment::code64(8), ..SystemRegisters::default() };
    assert_eq!(Scheme::of(&system), Scheme::Off);
    system.cr0 = cr0::PE | cr0::PG;
    assert_eq!(Scheme::of(&system), Scheme::Bits32);
    system.cr4 = cr4::PAE;
    assert_eq!(Scheme::of(&system), Scheme::Pae);
    system.efer = efer::LME | efer::LMA;
    assert_eq!(Scheme::of(&system), Scheme::FourLevel);
    system.cr4 |= cr4::LA57;
    assert_eq!(Scheme::of(&system), Scheme::FiveLevel);
    assert!(!Paging::of(&system, 40).execute_disable);
}

#[test]
fn a_walk_is_told_entry_by_entry() {
    let memory = Memory([(0x1000, 0x2003), (0x2000, 0x3003), (0x3008, 0x20_0083)].into());
    let paging = Paging::new(Scheme::FourLevel, 0x1000, 40);
    assert_eq!(
        walk(&paging, &memory, 0x20_1234).to_string(),
        "PML4E [  0] at 0x1000       0x0000000000002003  P W\n\
         PDPTE [  0] at 0x2000       0x0000000000003003  P W\n\
         PDE   [  1] at 0x3008       0x0000000000200083  P W PS\n\
         physical 0x201234, page of 2 MiB, writable, kernel only, executable"
    );
    assert_eq!(
        walk(&paging, &memory, 0x40_0000).to_string().lines().last(),
        Some("no page: the table of the PDE, at 0x3000, is not in RAM")
    );
    let json = serde_json::to_value(walk(&paging, &memory, 1 << 47)).unwrap();
    assert_eq!((&json["scheme"], &json["end"]["Err"]), (&"four-level".into(), &"not-canonical".into()));
}
