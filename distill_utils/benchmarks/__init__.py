"""What things cost, measured side by side: one file a subject, each with a `benchmark(args, folder)`."""
