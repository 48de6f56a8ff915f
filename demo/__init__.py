"""The demo organism: two small Qwen3 models, their prompts, and the script that trains them again."""
