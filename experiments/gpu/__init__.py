"""What bench/on_gpu.py runs on a GPU machine, part by part. Each part is a script that writes one JSON file."""
