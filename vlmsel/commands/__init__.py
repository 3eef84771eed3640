"""One typed function per command: glue between the rooms, nothing else."""
