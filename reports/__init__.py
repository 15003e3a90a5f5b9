"""Reports: run the notebooks as one recipe, compare what they measured with what was promised, write it down."""
