"""A tokenizer's own chat template: its trained spans found by marks, its ways said."""
