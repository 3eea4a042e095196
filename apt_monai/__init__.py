"""apt_monai: synthesis of missing brain MR contrasts with APT (CVPR 2025) on MONAI.

Research software, not a medical device.
"""

__version__ = "0.1.0"
