"""Speech data: readers of data files, text and audio clean-up, the layouts, the store of codes."""
