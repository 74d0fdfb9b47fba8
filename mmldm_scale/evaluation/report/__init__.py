"""Reports of an evaluation: JSON, Markdown, HTML and TensorBoard."""
