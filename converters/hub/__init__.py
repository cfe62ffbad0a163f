"""Sources by name: `OWNER/NAME[@REVISION][:FILE]` on the Hugging Face hub."""
