"""The reference's package ``detectors``; see ``detector_factory``."""
