"""Files and the machine: tensors, weights, media, JSON, memory."""
