"""What every program stands on: its flags, the run's folder, files, devices, processes, signals, seeds and
errors.
"""
