"""An adapter leaves finetune: merged into its base, or as GGUF files for llama.cpp and Ollama."""
