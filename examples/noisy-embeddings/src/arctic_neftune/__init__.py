"""NEFTune for Arctic."""
