"""Questions asked, judged, scored and compared."""
