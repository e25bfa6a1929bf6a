"""`ray job submit --working-dir . -- python jobs/score.py …`: takes what `catdog score` takes."""

import sys

from catdog.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["score"]
    main()
