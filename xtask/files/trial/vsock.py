#!/bin/python3.11 -S
"""What vsock-trial's `echo` and `dial` do, by Python's AF_VSOCK: in the guest, the other side is vsock-trial.

    vsock-python echo 52            until a connection to port 53 comes
    vsock-python dial 5000 COUNT    connections to the host: random bytes, wanted back to the end, or an end in the middle
"""

import os
import socket
import sys
import threading

AT_ONCE = 25


def any_below(end):
    return int.from_bytes(os.urandom(4), "little") % end


def listen(port):
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(128)
    return listener


def echo(stream):
    with stream:
        try:
            while data := stream.recv(65536):
                stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # One that went in the middle is no fault.


def serve(listener):
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=echo, args=[stream], daemon=True).start()


def dial(port):
    with socket.socket(socket.AF_VSOCK) as stream:
        stream.settimeout(60)
        stream.connect((socket.VMADDR_CID_HOST, port))
        data = os.urandom(any_below((10, 1000, 40_000, 300_000)[any_below(4)]))
        if any_below(4) == 0:
            stream.sendall(data[: any_below(len(data) // 2 + 1)])
            return "left"

        def send():
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = b"".join(iter(lambda: stream.recv(65536), b""))
        sender.join()
        return "came back whole" if back == data else f"{len(back)} of {len(data)} bytes"


def run(port, count):
    results = []

    def work(worker):
        for _ in range(worker, count, AT_ONCE):
            try:
                results.append(dial(port))
            except OSError as error:
                results.append(str(error))

    workers = [threading.Thread(target=work, args=[worker]) for worker in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(", ".join(f"{results.count(result)} {result}" for result in sorted(set(results))))
    return len(results) == count and set(results) <= {"came back whole", "left"}


match sys.argv[1:]:
    case ["echo", port]:
        ends, listener = listen(int(port) + 1), listen(int(port))
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        # What waits for it knows by this file.
        open("/tmp/listens", "w").close()
        ends.accept()
    case ["dial", port, count]:
        sys.exit(not run(int(port), int(count)))
    case _:
        sys.exit("usage: vsock-python echo PORT | dial PORT COUNT")
