"""Starts `vllm bench serve` in the serving environment, with that environment's Python and by path: imports vllm only.

The console script is not used: it asks for package metadata that some builds of vLLM for CPUs lack.
"""

import sys

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(sys.argv[1:]))
