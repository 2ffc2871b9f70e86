"""Runs `vllm bench serve` again and again in the serving environment: by that environment's Python and by path, imports vllm only.

Orders come as lines of JSON from the file named in the first argument (a pipe): `{"arguments": [...], "seconds": N}`, and
null for the end. Every order that was carried out is said on standard output. One process for all of them, because importing
vLLM takes longer than a small load, and reading the tokenizer as long as one. The console script is not used: it asks for
package metadata that some builds of vLLM for CPUs lack.
"""

import functools
import json
import os
import signal
import sys

from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

SAID = "lockgate-load-generator:"

if __name__ == "__main__":
    if hasattr(serve, "get_tokenizer"):
        serve.get_tokenizer = functools.cache(serve.get_tokenizer)
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    serve.add_cli_args(parser)
    print(SAID, "ready", os.getpid(), flush=True)
    with open(sys.argv[1]) as orders:
        for line in orders:
            order = json.loads(line)
            if order is None:
                break
            # Ends this process if the load takes longer: the default action of the signal.
            signal.alarm(order["seconds"])
            serve.main(parser.parse_args(order["arguments"]))
            signal.alarm(0)
            print(SAID, "done", flush=True)
