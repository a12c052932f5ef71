"""Mutations of the switches of trajectory matching, and of what opens it; see mutations.py."""

SWITCHES = [
    (
        "distill_utils/distillation/objectives.py",
        "tests/distillation/test_flags_reach.py",
        {
            "--merge_loss_branches ignored": ("merge_towers=args.merge_loss_branches", "merge_towers=False"),
            "temperature ignored in matching": ("        temperature=args.temperature,\n", ""),
            "--gradient ignored": ("gradient=args.gradient,", 'gradient="truncated",'),
            "--loss_type ignored in matching": ("LOSSES[args.loss_type]", 'LOSSES["WBCE"]'),
            "--expert_epochs ignored": ("expert_epochs=args.expert_epochs,", "expert_epochs=1,"),
            "--blend ignored": ("blend=args.blend", "blend=0.0"),
            "--min_start_epoch ignored": ("args.min_start_epoch, args.max", "0, args.max"),
            "--shortcut ignored": ("if args.shortcut else", "if False else"),
        },
    ),
    (
        "distill_utils/experts/starts.py",
        "tests/experts/test_starts.py",
        {
            "one epoch for both towers, always": ("image if self.together else", "image if True else"),
            "ranges end before the median": ("(~above).nonzero().max()", "(~above).nonzero().min()"),
            "image and text ranges swapped": (
                "Weights(range(image + 1), range(text + 1))",
                "Weights(range(text + 1), range(image + 1))",
            ),
        },
    ),
    (
        "distill_utils/experts/shortcut.py",
        "tests/experts/test_starts.py",
        {
            "one pace for all tensors": (
                "return (path / path[-1])",
                "return (path / path[-1]).mean(1, True)",
            ),
            "the expert's own path": ("torch.lerp(begin.float(), end.float(), b)", "shots[epoch][0]"),
        },
    ),
    (
        "distill_utils/matching/student.py",
        "tests/matching/test_blend.py",
        {
            "texts are not blended": (
                "batch.blend(images), batch.blend(texts)",
                "batch.blend(images), texts",
            ),
            "weights the wrong way round": (
                "self.weight * values + (1 - self.weight) * values[self.permutation]",
                "(1 - self.weight) * values + self.weight * values[self.permutation]",
            ),
        },
    ),
    (
        "distill_utils/distillation/averaging.py",
        "tests/distillation/test_averaging.py",
        {
            "decay the wrong way round": ("1 - self.decay)", "self.decay)"),
            "learned rates averaged": ('if name in ("lr_img", "lr_txt") else', "if False else"),
            "the average is not gone on with": (
                "self.synthetic.parameters() if state is None else state",
                "self.synthetic.parameters()",
            ),
        },
    ),
    (
        "distill_utils/distillation/outer_loop.py",
        "tests/distillation/test_averaging.py",
        {"the average is not saved": ("return self.average.average if", "return self.synthetic if")},
    ),
    (
        "distill_utils/runs/group.py",
        "tests/programs/test_switches.py",
        {"memory of another layout travels as it is": ("whole = tensor.contiguous()", "whole = tensor")},
    ),
]
