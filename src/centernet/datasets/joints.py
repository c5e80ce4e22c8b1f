"""The 17 joints of a person as COCO numbers them; all datasets of the pose task have them in this order."""

JOINT_NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)
NUM_JOINTS = len(JOINT_NAMES)

# Joints that change places in a mirrored image, left and right.
FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
MIRRORED = (0, *(joint for left, right in FLIP_PAIRS for joint in (right, left)))  # what takes the place of each joint

# Pairs of joints that a skeleton connects.
SKELETON = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (4, 6), (3, 5), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (6, 12), (5, 11)),
    *((11, 12), (12, 14), (14, 16), (11, 13), (13, 15)),
)
