"""The Gradio app: a page as a function of a pipeline. Nothing in `iris` imports it."""
