"""Claims trials of a ledger until none is left, in bunches of changing size, and prints their keys.

Run as a program: python claimer.py LEDGER NUMBER.
"""

import sys

from search.ledger import Ledger

if __name__ == "__main__":
    size, mine = int(sys.argv[2]) % 5 + 3, []
    with Ledger(sys.argv[1]) as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")  # the machine stays up: only time depends on this
        print("ready", flush=True)
        sys.stdin.readline()
        while specs := ledger.claim("study", size):
            mine += [spec.key for spec in specs]
    print("\n".join(mine))
