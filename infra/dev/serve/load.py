"""A cheap HTTP client in a process of its own: N keep-alive connections, each asking again as soon as it is answered.

Reads one JSON object on stdin {port, clients, seconds or requests, fresh, first_seed, base, prefix, headers}, writes one on
stdout {rows: [[start_s, seconds, status, content type]], answers: {seed: id}, cpu_s}. `fresh` asks for a new adapter each
time, else for one of 32 that are stored. Every seed has a wording of its own, as users have: embedding a new one takes as
long as sampling.
"""

import asyncio
import json
import sys
import time


def wording(seed: int) -> str:
    """The prompt that is asked with a seed."""
    return f"Is it an act, an event, a process or a phenomenon? Mail {seed}."


async def ask(reader, writer, method: str, path: str, body: bytes, headers: str = "") -> tuple[int, str, bytes]:
    """(status, content type, body) of one request on an open connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    writer.write((head + "Content-Type: application/json\r\n" + headers + "\r\n").encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
    if fields.get("transfer-encoding") == "chunked":
        answer = b""
        while size := int(await reader.readline(), 16):
            answer += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        answer = await reader.readexactly(int(fields.get("content-length", 0)))
    return (
        int(lines[0].split()[1]),
        fields.get("content-type", "") + ("; retry" if "retry-after" in fields else ""),
        answer,
    )


async def client(asked: dict, number: int, until: float, rows: list, answers: dict) -> None:
    reader = writer = None
    count = 0
    while time.time() < until and (not asked.get("requests") or len(rows) < asked["requests"]):
        seed = asked["first_seed"] + (number + count * asked["clients"]) % (2**40 if asked["fresh"] else 32)
        count += 1
        wanted = {"prompt": wording(seed), "base": asked["base"], "seed": seed}
        started = time.time()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", asked["port"])
            status, kind, answer = await asyncio.wait_for(
                ask(
                    reader,
                    writer,
                    "POST",
                    asked.get("prefix", "") + "/v1/adapters",
                    json.dumps(wanted).encode(),
                    asked.get("headers", ""),
                ),
                120,
            )
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            status, kind, answer, writer = 0, type(error).__name__, b"", None
        rows.append([started, time.time() - started, status, kind])
        if status in (200, 202):
            answers[seed] = json.loads(answer)["id"]
        elif status == 503 or status == 0:
            await asyncio.sleep(0.1)


async def main() -> None:
    asked = json.load(sys.stdin)
    rows, answers = [], {}
    until = time.time() + asked.get("seconds", 3600)
    await asyncio.gather(*(client(asked, i, until, rows, answers) for i in range(asked["clients"])))
    told = {
        "rows": rows,
        "answers": {str(seed): found for seed, found in answers.items()},
        "cpu_s": time.process_time(),
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
