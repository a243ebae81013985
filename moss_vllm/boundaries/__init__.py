"""Generic event boundary detection: when something ends in a video and something else begins (Table 9)."""
