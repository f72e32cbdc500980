"""A client that updates rows of a table, one after the other, in random order; a process of its own.

    python -m bench.client URL TABLE CONDITION

Says `ready`; begins when it reads a line, says `going`, ends at the next line and prints its waits, milliseconds.
"""

from __future__ import annotations

import json
import select
import sys
import time

import psycopg


def main() -> None:
    """Update until a second line comes."""
    url, table, condition = sys.argv[1:]
    # Names and conditions are the harness's own.
    choose = f"SELECT id FROM {table} WHERE {condition} ORDER BY random() LIMIT 20000"
    update = f"UPDATE {table} SET created_at = created_at WHERE id = %s"
    waits = []
    with psycopg.connect(url, autocommit=True) as connection:
        keys = [row[0] for row in connection.execute(choose.encode())]
        connection.execute(update.encode(), [keys.pop()])
        print("ready", flush=True)
        sys.stdin.readline()
        for number, key in enumerate(keys):
            started = time.perf_counter()
            connection.execute(update.encode(), [key])
            waits.append(round((time.perf_counter() - started) * 1000, 2))
            if number == 0:
                print("going", flush=True)
            if select.select([sys.stdin], [], [], 0.001)[0]:
                break
    print(json.dumps(waits), flush=True)


if __name__ == "__main__":
    main()
