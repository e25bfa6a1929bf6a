"""`ray job submit --working-dir . -- python jobs/train.py …`: takes what `catdog train` takes."""

import sys

from catdog.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
