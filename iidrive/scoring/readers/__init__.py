"""Planned paths from the files that people have: what a file is, is told by its content, and said when it is read.

- iidrive's own npz (`token`, `trajectory`, `frame`, `reference`), or an npz with one (6,2) array under each sample token;
- pickle, JSON or torch.save: `{token: path}`, as AD-MLP, GPT-Driver and Agent-Driver write it; `{token: {"plan": path, …}}`; `{token: text}`
  with the points in the text; a nuScenes submission (`meta`, `results`);
- rows with tokens, as a list or as JSON lines: `{"token": …, "trajectory": path}`, also `sample_token` and other names for the path;
- UniAD's results (`bbox_results`, or its rows alone) and VAD's, GenAD's and SSR's (`plan_results`);
- SparseDrive's results.pkl, and VAD's rows of `pts_bbox`: in the order of the data set, without tokens;
- pickle, JSON or npy with n paths and no tokens.

A path is (6,2): positions of LIDAR_TOP in the lidar frame of the sample's keyframe (x right, y forward), metres, 0.5 to 3.0 s ahead. Leading
axes of length 1 are dropped, and so are a third column of headings and the present as a seventh point (`shapes`).
Files without tokens are joined through a list of tokens, or by row to cases that have none either.
"""

from iidrive.scoring.readers.entry import Found, is_paths, read_paths, read_tokens

__all__ = ["Found", "is_paths", "read_paths", "read_tokens"]
