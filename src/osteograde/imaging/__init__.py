"""What a scan is and where it is: geometry, DICOM reading, intensity, crop sampling."""
