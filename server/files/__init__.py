"""The files that the server reads and writes: uploads, inputs, artifacts, logs, synthetic sets."""
