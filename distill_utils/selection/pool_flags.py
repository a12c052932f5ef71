"""The flags of the commands on pools: vas, moment and validate."""

from distill_utils.runs.flags import Parser, count, device_flag, finite, fraction


def vas_parser(doc=None):
    parser = _pool_parser(doc, required=True)
    add = parser.group("what to keep")
    what = "the subset; a .json beside it says how it came about"
    add("--save_path", str, None, what, required=True, metavar="FILE.npy")
    add("--fraction", fraction, None, "keep this part of the pool by CLIP score (default: all)", metavar="F")
    add("--threshold", finite, None, "instead: keep CLIP scores of at least this (default: all)", metavar="T")
    part = "of those keep this fraction of the whole pool by VAS (default: --threshold_vas)"
    add("--fraction_vas", fraction, None, part, metavar="F")
    least = "instead: keep VAS of at least this (default: --fraction_vas)"
    add("--threshold_vas", finite, None, least, metavar="T")
    moment = "second moment of the prior set, .npy or .pt (default: VAS-D, the pool's own)"
    add("--target_variance", str, None, moment, metavar="FILE")
    rounds = "rounds of VAS-D; 1 is VAS by the pool's second moment (default: VAS by --target_variance)"
    add("--num_iters", count, None, rounds, metavar="T")
    given = "a subset that the pool is restricted to first (default: none)"
    add("--given_uids_path", str, None, given, metavar="FILE.npy")
    add("--keep_parts", bool, False, "leave FILE.npy.parts there, which other fractions may go on from")
    return _with_embedding_flags(parser)


def moment_parser(doc=None):
    parser = _pool_parser(doc)
    add = parser.group("embeddings")
    files = "instead of a pool: .npy, .npz (--feature_member) or .pt, each [N, D] (default: the pool)"
    add("--features", str, (), files, nargs="+", metavar="FILE")
    add("--out", str, None, "where the second moment goes", required=True, metavar="FILE.npy")
    return _with_embedding_flags(parser)


def validate_parser(doc=None):
    parser = _pool_parser(doc)
    parser.add_argument("subset", metavar="FILE.npy", help="the subset to look at")
    return parser


def _pool_parser(doc, required=False):
    parser = Parser(doc)
    add = parser.group("pool")
    what = "folder or fsspec URL of DataComp metadata, pairs of <name>.parquet and .npz (default: none)"
    add("--metadata_dir", str, None, what, required=required, metavar="DIR")
    add("--arch", ("l14", "b32"), "l14", "whose scores and embeddings: CLIP's ViT-L/14 or ViT-B/32")
    add("--score_column", str, None, "CLIP scores (default: clip_<arch>_similarity_score)", metavar="NAME")
    add("--feature_member", str, None, "image embeddings in the .npz (default: <arch>_img)", metavar="NAME")
    add("--uid_column", str, "uid", "column of the uids", metavar="NAME")
    add("--block", count, 4096, "rows of features read at a time, which changes no result", metavar="ROWS")
    return parser


def _with_embedding_flags(parser):
    add = parser.group("arithmetic")
    add("--normalize", bool, False, "make embeddings unit vectors (else those that are not are bad)")
    bad = "without a uid, a finite score or a unit vector: refuse them, or drop and count them"
    add("--bad_rows", ("refuse", "drop"), "refuse", bad)
    device_flag(add)
    return parser
