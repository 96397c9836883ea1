"""Readers of planned paths. The format of a file is detected from its content and reported when it is read.

- iidrive's own npz (`token`, `trajectory`, `frame`, `reference`), or an npz with one (6,2) array per sample token;
- pickle, JSON or torch.save: `{token: path}` as in AD-MLP, GPT-Driver and Agent-Driver; `{token: {"plan": path, …}}`; `{token: text}` with the
  points in the text; a nuScenes submission (`meta`, `results`);
- rows with tokens, as a list or JSON lines: `{"token": …, "trajectory": path}`, also `sample_token` and other names of the path;
- UniAD's results (`bbox_results`, or only its rows) and those of VAD, GenAD and SSR (`plan_results`);
- SparseDrive's results.pkl and VAD's rows of `pts_bbox`, in the order of the data set, without tokens;
- pickle, JSON or npy with n paths and no tokens.

A path is (6,2): positions of LIDAR_TOP in the lidar frame of the sample's keyframe (x right, y forward), metres, 0.5 to 3.0 s ahead. Leading axes of
length 1 are dropped. So are a third column of headings, and a first point at t = 0 of seven points (see `shapes`).
Files without tokens are joined through a list of tokens, or by row to cases without tokens.
"""

from iidrive.scoring.readers.entry import Found, is_paths, read_paths, read_tokens

__all__ = ["Found", "is_paths", "read_paths", "read_tokens"]
