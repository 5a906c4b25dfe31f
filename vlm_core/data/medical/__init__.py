"""Medical images: DICOM and NIfTI read as a hospital stores them, windowed, and stripped of what names a person."""
