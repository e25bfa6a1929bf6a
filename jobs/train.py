"""`ray job submit --working-dir . -- python jobs/train.py …`: takes what `catdog train` takes."""

import sys

from catdog.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
