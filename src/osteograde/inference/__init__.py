"""One run over a folder of studies: deadlines, several devices, and a submission that is always whole."""
