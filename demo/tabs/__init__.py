"""One tab a file, each with `build_tab(pipeline)`; a tab knows the pipeline and nothing of its neighbours."""
