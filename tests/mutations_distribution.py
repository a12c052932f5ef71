"""Mutations of objectives without an inner loop, of phases, prototypes and baselines; see mutations.py."""

DISTRIBUTION = [
    (
        "distill_utils/distribution/mdm.py",
        "tests/distribution/test_mdm.py",
        {
            "agreement twice": (
                '(("agreement", 1), ("discrepancy", -1))',
                '(("agreement", 1), ("discrepancy", 1))',
            ),
            "the cross term counts once": ("- 2 * squares[2]", "- squares[2]"),
            "an angle is not squared": ("-cosines.arccos().square()", "-cosines.arccos()"),
            "two experts that begin apart": ("        second = first\n", "        pass\n"),
            "the teacher is the mean": ("0.5 * (2 * cosine / (1 + cosine))", "1.0"),
            "epoch 0 is drawn": ("return 1 + int(torch", "return 0 + int(torch"),
        },
    ),
    (
        "distill_utils/distribution/covmatch.py",
        "tests/distribution/test_covmatch.py",
        {
            "covariances are not centred": (
                "(images - images.mean(0)).T @ (texts - texts.mean(0))",
                "images.T @ texts",
            ),
            "rho stretches the synthetic one": (
                "self.rho * cross_covariance(*real[:2]) - cross_covariance(*made[:2])",
                "cross_covariance(*real[:2]) - self.rho * cross_covariance(*made[:2])",
            ),
            "the model never begins anew": (
                "self._weights is None or (step - 1) % self.reset == 0",
                "self._weights is None",
            ),
            "a step cut off leaves its model": (
                "            self._next = self._trained",
                "            self._next = self._weights = self._trained",
            ),
        },
    ),
    (
        "distill_utils/training/students.py",
        "tests/training/test_student_training.py",
        {
            "rates always begin anew": ("number > 0 and not restart_rates", "False"),
            "epochs are not counted on": ("yield number * epochs + epoch, loss", "yield epoch, loss"),
        },
    ),
    (
        "distill_utils/selection/coresets.py",
        "tests/selection/test_coresets.py",
        {
            "pairs that do not agree stay": ("int(len(features.texts) * keep)", "len(features.texts)"),
            "clusters matched in their order": (
                "linear_sum_assignment(-shared.numpy())",
                "(range(n), range(n))",
            ),
        },
    ),
    (
        "distill_utils/evaluation/baselines.py",
        "tests/evaluation",
        {
            "rates are chosen by their order": (
                'row.get("val_r_mean", -1.0), reverse=True',
                "0, reverse=True",
            ),
            "all students look at every rate": ("draws=draws[:FEW]", "draws=draws"),
            "rates are chosen on test": ('"splits": ("val",)', '"splits": ("val", "test")'),
        },
    ),
]
