"""Mutations of the protocol, on each of which some test must fail: mutants.py makes them."""

from mutations_distribution import DISTRIBUTION
from mutations_frozen import FROZEN
from mutations_switches import SWITCHES

# (file, the tests that must fail, {what is wrong: (text that stands in the file once, what becomes of it)}).
MUTATIONS = [
    (
        "distill_utils/evaluation/protocols.py",
        "tests/evaluation/test_protocols.py",
        {
            "epoch chosen on test": (
                'lambda point: point["val"]["r_mean"]',
                'lambda point: point["test"]["r_mean"]',
            ),
            "the latest of equal epochs": (
                'max(curve, key=lambda point: point["val"]',
                'max(curve[::-1], key=lambda point: point["val"]',
            ),
            "headline of students is best": ('summary |= protocols["val"]', 'summary |= protocols["best"]'),
            "headline of runs is best": ('return protocols["val"]', 'return protocols["best"]'),
            "std of the population": ("statistics.stdev(", "statistics.pstdev("),
            "last and best swapped": (
                '"last": curve[-1]["test"], "best": best["test"]',
                '"last": best["test"], "best": curve[-1]["test"]',
            ),
        },
    ),
    (
        "distill_utils/distillation/recording.py",
        "tests/evaluation/test_protocols.py",
        {
            "outer step chosen on test": (
                'evaluations[step]["val_r_mean"]["mean"])',
                'evaluations[step]["r_mean"]["mean"])',
            ),
            "the latest of equal outer steps": (
                "max(sorted(evaluations), key",
                "max(sorted(evaluations, reverse=True), key",
            ),
            "last and best swapped in the log": (
                'for protocol in ("last", "best")',
                'for protocol in ("best", "last")',
            ),
        },
    ),
    (
        "distill_utils/distillation/recording.py",
        "tests/distillation/test_recording.py",
        {
            "the last set tested": ("SyntheticSet.load(self._file(step))", "self.loop.synthetic"),
            "sets looked at in the end alone": ("step % self.eval_it == 0 or", ""),
        },
    ),
    (
        "distill_utils/evaluate.py",
        "tests/evaluation/test_flags_of_evaluate.py",
        {
            "one seed for all random students": (
                'derive_seed(args.seed, "random", number)',
                'derive_seed(args.seed, "random")',
            ),
            "one draw for all random students": (
                "len(synthetic), numbers)",
                'len(synthetic), generator(args.seed, "coreset"))',
            ),
            "distilled sets choose rates too": ("        return students()\n", "        pass\n"),
            "learned rates kept from real pairs": ("rates.append(", "print("),
            "set's loss ignored": ('args.loss_type or synthetic.meta.get("loss", "WBCE")', '"WBCE"'),
        },
    ),
    (
        "distill_utils/evaluation/from_flags.py",
        "tests/evaluation/test_flags_of_evaluate.py",
        {"set's temperature ignored": ('    "temperature",\n', "")},
    ),
    (
        "distill_utils/evaluation/retrieval.py",
        "tests/evaluation/test_retrieval.py",
        {
            "ties are hits": ("torch.ge(part, of_column", "torch.gt(part, of_column"),
            "recall at k + 1": ("(ranks < k)", "(ranks <= k)"),
        },
    ),
    (
        "distill_utils/training/students.py",
        "tests/training/test_student_training.py",
        {
            "students without momentum": ("momentum=0.9, ", ""),
            "students without weight decay": (", weight_decay=5e-4", ""),
            "students without schedule": ("        schedule.step()\n", ""),
            "schedule at the end": ("else epochs // 2]", "else epochs]"),
            "students see one order": ("(batch_size, generator=generator,", "(batch_size, shuffle=False,"),
            "temperature ignored in students": (
                "loss_fn, temperature, precision)",
                "loss_fn, 0.07, precision)",
            ),
        },
    ),
    (
        "distill_utils/training/epochs.py",
        "tests/training/test_student_training.py",
        {
            "image rate for both towers": ("zip(towers, (lr_img, lr_txt))", "zip(towers, (lr_img, lr_img))"),
            "rates swapped": ("zip(towers, (lr_img, lr_txt))", "zip(towers, (lr_txt, lr_img))"),
            "similarity ignored": (
                "loss_fn(logits, similarity)",
                "loss_fn(logits, torch.eye(len(logits)).to(logits))",
            ),
            "training without dropout": ("    model.train()\n", "    model.eval()\n"),
        },
    ),
    (
        "distill_utils/synthetic/set.py",
        "tests/training/test_student_training.py",
        {"shuffling off in students": ("shuffle=shuffle, generator", "shuffle=False, generator")},
    ),
    (
        "distill_utils/evaluation/students.py",
        "tests/evaluation/test_students.py",
        {
            "learned rates ignored": (
                "lrs or (synthetic.lr_img.item(), synthetic.lr_txt.item())",
                "lrs or (0.1, 0.1)",
            ),
            "one seed for all students": (
                'derive_seed(seed, "student", number)',
                'derive_seed(seed, "student")',
            ),
            "val measured on test": ("task.galleries[split] for", 'task.galleries["test"] for'),
            "dropout alive during recall": ("    model.eval()\n", ""),
            "students begin alike": ("torch.manual_seed(seed)", "torch.manual_seed(0)"),
            "students' batches in one order": ("generator=generator(seed)", "generator=generator(0)"),
            "temperature ignored in evaluation": ("temperature=temperature,\n", "temperature=0.07,\n"),
            "towers' learned rates swapped": (
                "lr_img=lr_img,\n        lr_txt=lr_txt",
                "lr_img=lr_txt,\n        lr_txt=lr_img",
            ),
        },
    ),
    (
        "distill_utils/training/epochs.py",
        "tests/evaluation/test_students.py",
        {"dropout stays off after a measurement": ("    model.train()\n", "")},
    ),
    (
        "distill_utils/experts/training.py",
        "tests/experts/test_expert_training.py",
        {
            "temperature ignored in experts": ("recipe.loss_fn, recipe.temperature", "recipe.loss_fn, 0.07"),
            "experts with momentum": (
                "sgd(model, recipe.lr_img, recipe.lr_txt)",
                "sgd(model, recipe.lr_img, recipe.lr_txt, momentum=0.9)",
            ),
            "experts' rates swapped": (
                "sgd(model, recipe.lr_img, recipe.lr_txt)",
                "sgd(model, recipe.lr_txt, recipe.lr_img)",
            ),
            "experts log val as test": (
                '["test"][key] for key in METRICS',
                '["val"][key] for key in METRICS',
            ),
            "experts see one order": (
                'generator(seed, "batches", attempt, epoch)',
                'generator(seed, "batches")',
            ),
        },
    ),
    (
        "buffer.py",
        "tests/experts/test_buffer_flags.py tests/experts/test_buffer.py",
        {
            "one seed for all experts": (
                'derive_seed(args.seed, "expert", n)',
                'derive_seed(args.seed, "expert")',
            ),
            "--seed ignored by buffer": (
                'derive_seed(args.seed, "expert", n)',
                'derive_seed(0, "expert", n)',
            ),
            "--temperature ignored by buffer": ("temperature=args.temperature", "temperature=0.07"),
            "--loss_type ignored by buffer": ("loss_fn=LOSSES[args.loss_type]", 'loss_fn=LOSSES["InfoNCE"]'),
            "--lr_teacher_txt ignored by buffer": (
                "lr_txt=args.lr_teacher_txt",
                "lr_txt=args.lr_teacher_img",
            ),
        },
    ),
    (
        "distill_utils/task/from_flags.py",
        "tests/experts/test_buffer_flags.py",
        {"experts never augmenting": ("None if args.no_aug else args.augmentation", "None")},
    ),
    (
        "distill_utils/task/retrieval_task.py",
        "tests/task/test_batches.py",
        {
            "augmentation lost on the way": (
                "            augmentation=augmentation,",
                "            augmentation=None,",
            ),
            "augmented images kept": ("if self.augmentation or size", "if size"),
            "experts' batches unshuffled": (
                "batch_size, shuffle=True, generator",
                "batch_size, shuffle=False, generator",
            ),
        },
    ),
    (
        "distill_utils/distillation/from_flags.py",
        "tests/distillation/test_flags_reach.py",
        {
            "test looked at while distilling": ('else ("val",)', 'else ("val", "test")'),
            "temperature ignored while distilling": (
                "        temperature=args.temperature,\n        device",
                "        device",
            ),
            "--num_eval ignored": ('"test"), num_eval=args.num_eval)', '"test"))'),
            "--lr_sim ignored": ("lr_sim=args.lr_sim", "lr_sim=args.lr_lr"),
            "--lr_teacher_txt ignored by the set": (
                "lrs=(args.lr_teacher_img, args.lr_teacher_txt)",
                "lrs=(args.lr_teacher_img, 0.1)",
            ),
        },
    ),
    (
        "distill_utils/matching/gradient.py",
        "tests/matching/test_gradient.py",
        {
            "towers never merged": ('gradient == "full", merge_towers', 'gradient == "full", False'),
            "temperature lost in the matcher": (
                "loss_fn, temperature, precision, compile)",
                "loss_fn, 0.07, precision, compile)",
            ),
        },
    ),
    *FROZEN,
    *SWITCHES,
    *DISTRIBUTION,
]
