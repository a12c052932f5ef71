"""Mutations of frozen towers, their protocol and its controls; see mutations.py."""

FROZEN = [
    (
        "distill_utils/matching/frozen.py",
        "tests/matching/test_frozen_tower.py",
        {
            "the last chunk is forgotten": (
                "width)\n        for part, some in enumerate(ids.split(chunk)):",
                "width)\n        for part, some in enumerate(ids.split(chunk)[:-1]):",
            ),
            "the gradient of another image": ("pixels, gradient[some])", "pixels, gradient[some].flip(0))"),
            "every process looks through all": (
                "if self.world.owns(part):\n                made",
                "if True:\n                made",
            ),
        },
    ),
    (
        "distill_utils/matching/gradient.py",
        "tests/matching/test_frozen_tower.py",
        {
            "images that are not drawn are looked at": (
                "torch.cat(list(minibatches)).unique()",
                "torch.arange(len(synthetic))",
            )
        },
    ),
    (
        "distill_utils/task/features.py",
        "tests/task/test_feature_cache.py",
        {
            "a file's change unnoticed": ("{path.name} {stat.st_size} {stat.st_mtime_ns}", "{path.name}"),
            "encoders told apart by weights alone": (
                "hashlib.sha256(repr(encoder).encode())",
                "hashlib.sha256()",
            ),
            "the image size forgotten": ("{self._encoder_is} {image_size}", "{self._encoder_is}"),
        },
    ),
    (
        "networks/two_tower.py",
        "tests/networks/test_image_encoders.py -k frozen",
        {
            "--freeze_bn ignored": ("    if freeze_bn:\n", "    if False:\n"),
            "a frozen tower trains its statistics": (
                "return super().train(False)",
                "return super().train(mode)",
            ),
        },
    ),
    (
        "distill_utils/compare.py",
        "tests/programs/test_compare.py",
        {"protocols in one row": ('(row["protocol"], row["dataset"])', '("P1", row["dataset"])')},
    ),
    (
        "distill_utils/evaluate.py",
        "tests/evaluation/test_control.py",
        {
            "any set is a control": ('if kind != "identity" or loss != loss_type:', "if False:"),
            "the control is the set itself": (
                "_evaluate_set(args, run, control,",
                "_evaluate_set(args, run, synthetic,",
            ),
        },
    ),
]
