"""What every script uses and no subject owns: options, files, errors, signals, processes, devices."""
