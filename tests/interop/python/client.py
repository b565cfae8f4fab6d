"""Runs pynsq through everything that an application does with it, against the brokers it is told of.

It prints `ok NAME` or `FAIL NAME why` for each scenario, and exits with 1 if one failed. tests/interop/clients.rs says
what each scenario leaves behind in the broker; the programs of the other languages do the same.
"""

import argparse
import asyncio
import logging
import ssl
import sys
import time

import nsq

# How long a scenario may take before it has failed, in seconds. nsqd looks for delays that are over only every five
# seconds on a channel it has not noticed yet.
PATIENCE = 25
# How long to look at something that must not happen.
QUIET = 0.3


class Failure(Exception):
    pass


class Run:
    """One scenario."""

    def __init__(self, arguments, writer, name):
        self.arguments = arguments
        self.writer = writer
        self.topic = f"{arguments.topic}.{name}"
        self.reader = None
        self.messages = asyncio.Queue()

    def consume(self, max_in_flight, **options):
        """Starts a consumer whose messages come through self.messages, unanswered."""

        def handler(message):
            message.enable_async()
            self.messages.put_nowait(message)

        addresses = {"nsqd_tcp_addresses": [self.arguments.nsqd_tcp]}
        if self.arguments.lookupd_http:
            addresses = {"lookupd_http_addresses": [self.arguments.lookupd_http], "lookupd_poll_interval": 1}
        self.reader = nsq.Reader(
            topic=self.topic,
            channel=self.arguments.channel,
            message_handler=handler,
            max_in_flight=max_in_flight,
            **addresses,
            **options,
            **connection_options(self.arguments),
        )

    async def publish(self, body):
        await self._confirmed(lambda callback: self.writer.pub(self.topic, body, callback=callback))

    async def multi_publish(self, bodies):
        await self._confirmed(lambda callback: self.writer.mpub(self.topic, bodies, callback=callback))

    async def deferred_publish(self, delay, body):
        milliseconds = int(delay * 1000)
        await self._confirmed(lambda callback: self.writer.dpub(self.topic, milliseconds, body, callback=callback))

    @staticmethod
    async def _confirmed(send):
        answer = asyncio.get_running_loop().create_future()
        send(lambda _conn, data: answer.done() or answer.set_result(data))
        data = await answer
        if data != b"OK":
            raise Failure(f"publishing: {data!r}")

    async def nothing(self, while_):
        """Looks whether a message comes within a while."""
        try:
            message = await asyncio.wait_for(self.messages.get(), while_)
        except asyncio.TimeoutError:
            return
        raise Failure(f"unexpected message: attempts {message.attempts}, {message.body!r}")

    async def finished(self):
        """Closes the reader and waits until it has no connection."""
        self.reader.close()
        while self.reader.conns:
            await asyncio.sleep(0.01)

    async def finish_each(self, count):
        """Takes the messages of numbered(0, count): each once, each at its first attempt."""
        bodies, ids = set(), set()
        for _ in range(count):
            message = await self.messages.get()
            if message.attempts != 1:
                raise Failure(f"attempts {message.attempts}")
            bodies.add(message.body)
            ids.add(message.id)
            message.finish()
        missing = set(numbered(0, count)) - bodies
        if missing or len(ids) != count:
            raise Failure(f"missing: {sorted(missing)}; {len(ids)} ids")


def connection_options(arguments):
    options = {}
    if arguments.tls_ca:
        # pynsq asks for TLS 1.2 and no other by default.
        tls_options = {"ca_certs": arguments.tls_ca, "cert_reqs": ssl.CERT_REQUIRED}
        options.update(tls_v1=True, tls_options=tls_options)
    if arguments.snappy:
        options.update(snappy=True)
    if arguments.deflate:
        options.update(deflate=True)
    if arguments.auth:
        options.update(auth_secret=arguments.auth)
    return options


def numbered(start, end):
    return [b"message %d" % i for i in range(start, end)]


def noise(size):
    """What no compression makes smaller."""
    data, state = bytearray(size), 1
    for i in range(size):
        state = (state * 1664525 + 1013904223) % 2**32
        data[i] = state >> 24
    return bytes(data)


async def publish(run):
    """Bodies of every kind arrive as they were sent."""
    bodies = [b"x", bytes(range(256)), noise(100_000)]
    for body in bodies:
        await run.publish(body)
    run.consume(1)
    for body in bodies:
        message = await run.messages.get()
        if message.body != body or message.attempts != 1:
            raise Failure(f"sent {len(body)} bytes, got {len(message.body)} others")
        message.finish()
    await run.finished()


async def multi_publish(run):
    """All messages of one command arrive, each once."""
    await run.multi_publish(numbered(0, 100))
    run.consume(10)
    await run.finish_each(100)
    await run.finished()


async def deferred(run):
    """A message does not come before its delay is over, and holds up no other."""
    delay = 0.5
    begin = time.monotonic()
    await run.deferred_publish(delay, b"later")
    await run.publish(b"now")
    run.consume(1)
    for expected in [b"now", b"later"]:
        message = await run.messages.get()
        if message.body != expected:
            raise Failure(f"{message.body!r} came instead of {expected!r}")
        message.finish()
    after = time.monotonic() - begin
    if after < delay:
        raise Failure(f"delayed by {delay} s, came after {after} s")
    await run.finished()


async def consume(run):
    """Many messages, published one by one without waiting, arrive once each."""
    await run.publish(b"message 0")
    run.consume(50)
    await asyncio.gather(*(run.publish(body) for body in numbered(1, 500)))
    await run.finish_each(500)
    await run.finished()


async def requeue(run):
    """A requeued message comes again, as the same message with one more attempt, at once or after its delay."""
    await run.publish(b"again")
    run.consume(1)
    first = await run.messages.get()
    if first.attempts != 1:
        raise Failure(f"attempts {first.attempts} at first")
    first.requeue(backoff=False, time_ms=0)
    second = await run.messages.get()
    begin = time.monotonic()
    second.requeue(backoff=False, time_ms=200)
    third = await run.messages.get()
    after = time.monotonic() - begin
    if after < 0.2:
        raise Failure(f"requeued with 0.2 s, came after {after} s")
    for attempts, message in [(2, second), (3, third)]:
        same = (message.id, message.timestamp, message.body) == (first.id, first.timestamp, first.body)
        if not same or message.attempts != attempts:
            raise Failure(f"{vars(first)} became {vars(message)}")
    third.finish()
    await run.finished()


async def touch(run):
    """A message that is touched stays with its consumer for longer than its timeout."""
    await run.publish(b"slow")
    run.consume(2, msg_timeout=1)
    message = await run.messages.get()
    for _ in range(8):
        await run.nothing(QUIET)
        message.touch()
    message.finish()
    await run.nothing(QUIET)
    await run.finished()


async def backoff(run):
    """A failure stops delivery for a while, then it goes on."""
    await run.publish(b"failing")
    # The first backoff is 0.028 of the longest.
    run.consume(4, max_backoff_duration=16)
    failing = await run.messages.get()
    begin = time.monotonic()
    failing.requeue(time_ms=0)
    again = await run.messages.get()
    after = time.monotonic() - begin
    if after < 0.3:
        raise Failure(f"no backoff: the message came again after {after} s")
    if again.id != failing.id or again.attempts != 2:
        raise Failure(f"{vars(failing)} became {vars(again)}")
    again.finish()
    await run.multi_publish(numbered(0, 10))
    await run.finish_each(10)
    await run.finished()


async def stop(run):
    """The messages in flight are answered, nothing further comes, and the connection is closed.

    pynsq closes at once and sends no CLS: to stop cleanly an application first tells it to take no more.
    """
    await run.multi_publish(numbered(0, 5))
    run.consume(5)
    held = [await run.messages.get() for _ in range(5)]
    run.reader.set_max_in_flight(0)
    await run.publish(b"left")
    await run.nothing(QUIET)
    for message in held:
        message.finish()
    await run.finished()


SCENARIOS = {
    "publish": publish,
    "multi-publish": multi_publish,
    "deferred": deferred,
    "consume": consume,
    "requeue": requeue,
    "touch": touch,
    "backoff": backoff,
    "stop": stop,
}


async def outcome(arguments, writer, name):
    try:
        await asyncio.wait_for(SCENARIOS[name](Run(arguments, writer, name)), PATIENCE)
    except asyncio.TimeoutError:
        print(f"FAIL {name} not done within {PATIENCE} s", flush=True)
    except Exception as error:  # noqa: BLE001: each scenario has its line
        print(f"FAIL {name} {error!r}", flush=True)
    else:
        print(f"ok {name}", flush=True)
        return True
    return False


async def main(arguments):
    writer = nsq.Writer([arguments.nsqd_tcp], **connection_options(arguments))
    deadline = time.monotonic() + PATIENCE
    while not writer.conns:
        if time.monotonic() > deadline:
            print("FAIL writer no connection", flush=True)
            return False
        await asyncio.sleep(0.01)
    names = SCENARIOS if arguments.scenario == "all" else [arguments.scenario]
    return all(await asyncio.gather(*(outcome(arguments, writer, name) for name in names)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nsqd-tcp", required=True, help="host:port of nsqd")
    parser.add_argument("--lookupd-http", default="", help="host:port of nsqlookupd, which consumers ask for nsqd")
    parser.add_argument("--tls-ca", default="", help="PEM file with the authority of nsqd's certificate: use TLS")
    parser.add_argument("--snappy", action="store_true", help="compress with snappy")
    parser.add_argument("--deflate", action="store_true", help="compress with deflate")
    parser.add_argument("--auth", default="", help="secret for AUTH")
    parser.add_argument("--topic", required=True, help="what the topics' names begin with")
    parser.add_argument("--channel", required=True)
    parser.add_argument("--scenario", default="all", choices=["all", *SCENARIOS])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(0 if asyncio.run(main(parser.parse_args())) else 1)
