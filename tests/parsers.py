"""The parser of every program, for the tests of flags and of the sh files that give them."""

import buffer
import distill_lors
from distill_utils import benchmark, coreset, crossarch, evaluate
from distill_utils.selection import pool_flags

PARSERS = {
    "buffer.py": buffer.make_parser,
    "distill_lors.py": distill_lors.make_parser,
    "distill_utils.evaluate": evaluate.make_parser,
    "distill_utils.coreset": coreset.make_parser,
    "distill_utils.crossarch": crossarch.make_parser,
    "distill_utils.benchmark": benchmark.make_parser,
    "distill_utils.coreset vas": pool_flags.vas_parser,
    "distill_utils.coreset moment": pool_flags.moment_parser,
    "distill_utils.coreset validate": pool_flags.validate_parser,
}
