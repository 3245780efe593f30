"""What published tables must say, worked out from the source files with Pillow, hashlib, pandas and torch alone.

Nothing of the package is imported here: a test that compares its output with its own other output proves nothing.
"""

import collections
import glob
import hashlib
import io
import json
import os
import re

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def facts(path, *, max_pixels=50_000_000, max_aspect=20.0):
    """Error code ('' if none), sha256, format and displayed size of one file."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return {"error_code": "not_found"}
    if not data:
        return {"error_code": "empty_file"}
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:
        return {"error_code": "not_an_image|corrupt|truncated"}
    width, height = image.size
    if width * height > max_pixels:
        return {"error_code": "too_many_pixels"}
    if max(width, height) > max_aspect * min(width, height):
        return {"error_code": "bad_aspect_ratio"}
    try:
        width, height = ImageOps.exif_transpose(image).size
    except Exception:
        return {"error_code": "truncated|corrupt"}
    digest = hashlib.sha256(data).hexdigest()
    return {"error_code": "", "sha256": digest, "width": width, "height": height, "format": image.format}


def audit_images(images, expected, folder, **limits):
    """Differences between ``images.parquet`` and the files.

    Args:
        images: the table. expected: the catalog's rows as pandas reads them, by image: ``image``, ``label``, ``split``.
    """
    problems = []
    if sorted(images.image) != sorted(expected.image):
        problems.append("the rows are not the catalog's")
    by_image = expected.set_index("image")
    for row in images.itertuples():
        path = row.image if os.path.isabs(row.image) else os.path.join(folder, row.image)
        true = facts(path, **limits)
        if row.error_code not in true["error_code"].split("|"):
            problems.append(f"{row.image}: error_code {row.error_code!r}, and the file is {true['error_code']!r}")
        for name in ("sha256", "width", "height", "format"):
            found = getattr(row, name)
            found = None if pd.isna(found) else found
            if not true["error_code"] and found != true[name]:
                problems.append(f"{row.image}: {name} {found!r}, and the file has {true[name]!r}")
            if true["error_code"] and found is not None:
                problems.append(f"{row.image}: {name} {found!r} of a file that cannot be used")
        for name in ("label", "split"):
            if name in by_image.columns and by_image[name][row.image] != getattr(row, name):
                problems.append(f"{row.image}: {name} {getattr(row, name)!r}")
    return problems


def same_pictures(images, folder):
    """Groups of image names whose bytes are equal, from the files of all rows that can be used."""
    groups = collections.defaultdict(set)
    for row in images.itertuples():
        true = facts(row.image if os.path.isabs(row.image) else os.path.join(folder, row.image))
        if not true["error_code"]:
            groups[true["sha256"]].add(row.image)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def findings(run):
    """The findings of ``check.json`` by name."""
    with open(f"{run}/check.json") as file:
        return {found["name"]: found for found in json.load(file)["findings"]}


def audit_errors(errors, expected, folder, **limits):
    """Differences between an errors table and the files: code, stage and (where the message names one) the line."""
    stages = {"not_found": "fetch", "empty_path": "fetch", "duplicate_id": "fetch", "predict_failed": "predict"}
    problems = []
    bad = {}
    for row in expected.itertuples():
        true = facts(os.path.join(folder, row.image), **limits)
        if true["error_code"]:
            bad[row.image] = true["error_code"]
    if sorted(errors.image) != sorted(bad):
        problems.append(f"rows {sorted(set(errors.image) ^ set(bad))}")
    for row in errors.itertuples():
        if row.error_code not in bad.get(row.image, "").split("|"):
            problems.append(f"{row.image}: {row.error_code}, and the file is {bad.get(row.image)!r}")
        if row.stage != stages.get(row.error_code, "decode"):
            problems.append(f"{row.image}: stage {row.stage} of {row.error_code}")
    return problems


def pixels(path, transform, *, reduced=False):
    """The eval transform by Pillow alone: float32 ``(3, H, W)``, normalised.

    ``reduced``: of a JPEG that Pillow reads at the smallest scale that is large enough, as it is documented; else at
    full size.
    """
    image = Image.open(path)
    if reduced:
        image.draft(None, (transform["resize_size"],) * 2)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB")
    side = min(image.size) * transform["crop_size"] / transform["resize_size"]
    left, top = (image.width - side) / 2, (image.height - side) / 2
    size = (transform["crop_size"],) * 2
    square = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    values = np.asarray(square, np.float32).transpose(2, 0, 1) / 255
    return (values - np.array(transform["mean"])[:, None, None]) / np.array(transform["std"])[:, None, None]


def model_of(bundle):
    """The network of a bundle by torchvision or timm alone, in eval mode, and ``bundle.json``."""
    import safetensors.torch
    import timm
    import torchvision

    with open(f"{bundle}/bundle.json") as file:
        meta = json.load(file)
    library, _, name = meta["arch"].rpartition(":")
    if library == "timm":
        model = timm.create_model(name, num_classes=len(meta["labels"]))
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=len(meta["labels"]))
    model.load_state_dict(safetensors.torch.load_file(f"{bundle}/model.safetensors"))
    return model.eval(), meta


def predict(bundle, paths, *, reduced=False):
    """Label and calibrated confidence of images, by torch and torchvision alone; ``reduced``: see :func:`pixels`."""
    import torch

    model, meta = model_of(bundle)
    found = []
    with torch.inference_mode():
        for path in paths:
            logits = model(torch.from_numpy(pixels(path, meta["transform"], reduced=reduced).astype(np.float32))[None])[
                0
            ]
            shares = torch.softmax(logits / meta["temperature"], 0)
            found.append((meta["labels"][int(shares.argmax())], shares.numpy()))
    return found, meta


def predict_int8(bundle, paths):
    """The same of the network in 8-bit integers, ``(N, C)``, by OpenVINO on the bundle's two files."""
    import openvino

    with open(f"{bundle}/bundle.json") as file:
        meta = json.load(file)
    network = openvino.Core().compile_model(f"{bundle}/int8.xml", "CPU")
    mean, std = (np.array(meta["transform"][name])[:, None, None] for name in ("mean", "std"))
    images = [(pixels(path, meta["transform"], reduced=True) * std + mean) * 255 for path in paths]
    logits = network([np.rint(np.stack(images)).astype(np.uint8)])[1] / meta["temperature"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), meta


def shares_of_cnn2(bundle, paths, *, reduced=False):
    """Calibrated shares of the labels or intervals, ``(N, K)``, of a bundle of cnn2 by torch's layers alone."""
    import safetensors.torch
    import torch

    with open(f"{bundle}/bundle.json") as file:
        meta = json.load(file)
    state = list(safetensors.torch.load_file(f"{bundle}/model.safetensors").items())
    weight = dict(state)
    convolutions = sorted(name for name in weight if name.startswith("convolutions") and name.endswith("weight"))
    layers = []
    for name in convolutions:
        kernel = weight[name]
        layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3)
        layer.load_state_dict({"weight": kernel, "bias": weight[name.replace("weight", "bias")]})
        layers += [layer, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    layers.append(torch.nn.Flatten())
    for name in ("dense.1", "head"):
        layer = torch.nn.Linear(weight[f"{name}.weight"].shape[1], len(weight[f"{name}.weight"]))
        layer.load_state_dict({"weight": weight[f"{name}.weight"], "bias": weight[f"{name}.bias"]})
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).eval()
    images = np.stack([pixels(path, meta["transform"], reduced=reduced) for path in paths])
    with torch.inference_mode():
        return (model(torch.from_numpy(images.astype(np.float32))) / meta["temperature"]).softmax(1).numpy()


def quantile(shares, intervals, level):
    """A quantile of a distribution over intervals, one after the other."""
    before, total = 0.0, float(sum(shares))
    for share, low, high in zip(shares, intervals["lows"], intervals["highs"], strict=True):
        if before + share >= level * total or high == intervals["highs"][-1]:
            inside = min(max((level * total - before) / share, 0), 1) if share > 0 else 0
            return low + inside * (high - low)
        before += share
    raise AssertionError


TOLERANCE = 0.03  # of a confidence, or of a logit


def same_confidence(one, other, temperature, *, tolerance=TOLERANCE):
    """True if two confidences differ by what bfloat16 rounds away, in themselves or as logits.

    A small temperature (0.05 is the least) makes confidences of logits that hardly differ.
    """
    return abs(one - other) <= tolerance or temperature * abs(np.log(one) - np.log(other)) <= tolerance


def audit_predictions(predictions, bundle, folder, *, image="image", template="{image}", rows=40, tolerance=0.03):
    """Differences between random rows of ``predictions/`` and what torch makes of the files.

    Confidences may differ as :func:`same_confidence` says, and so the two best classes may change places where they are
    less than twice as far apart: one may have lost what the other has gained.
    """
    chosen = predictions.sample(min(rows, len(predictions)), random_state=0)
    paths = [os.path.join(folder, template.format(image=name)) for name in chosen[image]]
    found, meta = predict(bundle, paths, reduced=True)
    problems = []
    for row, (label, shares) in zip(chosen.itertuples(), found, strict=True):
        name = getattr(row, image)
        mine = float(shares[meta["labels"].index(row.pred_label)])
        if not same_confidence(row.pred_score, mine, meta["temperature"], tolerance=tolerance):
            problems.append(f"{name}: {row.pred_label} {row.pred_score:.3f}, and torch says {mine:.3f}")
        if label != row.pred_label and not same_confidence(
            mine, shares.max(), meta["temperature"], tolerance=2 * tolerance
        ):
            problems.append(f"{name}: {row.pred_label}, and torch says {label}")
        if row.topk_labels[0] != row.pred_label or not np.isclose(row.topk_scores[0], row.pred_score):
            problems.append(f"{name}: the first of topk is not the prediction")
        if sorted(row.topk_scores, reverse=True) != list(row.topk_scores):
            problems.append(f"{name}: topk is not in order")
    return problems


def audit_thresholds(predictions, thresholds):
    """Differences between ``decision`` and what the thresholds of ``run.json`` say of label and confidence."""
    problems = []
    for row in predictions.itertuples():
        accept = thresholds["per_class"].get(row.pred_label, thresholds["accept"])
        score = np.float32(row.pred_score)
        expected = "abstain" if score < thresholds["abstain"] else "accept" if score >= accept else "review"
        if row.decision != expected:
            problems.append(f"{row.pred_label} {row.pred_score}: {row.decision}, and the thresholds say {expected}")
    return problems


def audit_ledger(ledger, folder):
    """Differences between ``ledger/`` and the files: one row per image, with the digest of its bytes."""
    problems = [] if ledger.uri.is_unique else ["an image has two rows"]
    for row in ledger.itertuples():
        if not os.path.exists(row.uri):
            if row.error_code != "not_found":
                problems.append(f"{row.uri}: {row.error_code!r} of a file that is not there")
            continue
        with open(row.uri, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        if row.sha256 != digest:
            problems.append(f"{row.uri}: sha256 {row.sha256}")
        if (row.error_code == "") == pd.isna(row.pred_label):
            problems.append(f"{row.uri}: error_code {row.error_code!r} beside the label {row.pred_label!r}")
    return problems


def audit_queue(run, predictions, folder, *, key="image", path=lambda item: item, products=None):
    """Differences between ``review/queue.jsonl`` and the predictions: every doubtful row is in it, as it was published;
    where the catalog has products, the best image of every doubtful product.

    Args:
        products: the table ``products/``, whose ``best_image`` is the id of a row.
        key: the column of the predictions that is the item's id. path: from an id to its file below ``folder``.
    """
    with open(f"{run}/review/queue.jsonl") as file:
        queue = [json.loads(line)["data"] for line in file]
    by_item = predictions.set_index(key)
    doubtful = set(predictions[predictions.decision != "accept"][key])
    if products is not None:
        doubtful = set(products[products.decision != "accept"].best_image.dropna())
    named = {row["item_id"] for row in queue}
    problems = [] if named >= doubtful or len(queue) >= 300 else [f"{sorted(doubtful - named)} are missing"]
    for row in queue:
        true = by_item.loc[row["item_id"]]
        if (row["pred_label"], row["decision"]) != (true.pred_label, true.decision):
            problems.append(f"{row['item_id']}: {row['pred_label']} {row['decision']}")
        if not np.isclose(row["pred_score"], true.pred_score):
            problems.append(f"{row['item_id']}: {row['pred_score']}")
        if row["sha256"] != facts(os.path.join(folder, path(row["item_id"])))["sha256"]:
            problems.append(f"{row['item_id']}: sha256")
        if ("uncertain" in row["reasons"]) != (row["item_id"] in doubtful):
            problems.append(f"{row['item_id']}: {row['reasons']}")
    return problems


def best_epoch(history, metric="validation_top1"):
    """The last epoch within one standard error of the best score that there had been by then."""
    kept, scores = None, []
    for row in history:
        if not np.isfinite(row["validation_loss"]):
            continue
        scores.append(row[metric])
        top = np.max(scores)
        if top - row[metric] <= np.sqrt(top * (1 - top) / row["validation_rows"]):
            kept = row
    return kept


def audit_trials(trials, epochs, metric="validation_top1"):
    """Differences between ``trials.parquet`` and the epochs that it sums up; the best trial comes first."""
    by_trial = epochs.sort_values("epoch").groupby("trial")
    chosen = {trial: best_epoch(part.to_dict("records"), metric) for trial, part in by_trial}
    best = pd.DataFrame.from_dict(chosen, orient="index")
    problems = []
    for row in trials.itertuples():
        if not np.isclose(getattr(row, metric), best[metric][row.trial]) or row.best_epoch != best.epoch[row.trial]:
            problems.append(f"trial {row.trial}: epoch {row.best_epoch}, {metric} {getattr(row, metric)}")
        if row.epochs != epochs[epochs.trial == row.trial].epoch.max():
            problems.append(f"trial {row.trial}: {row.epochs} epochs")
    ranks = list(zip(-trials[metric], best.validation_loss[trials.trial], strict=True))
    return problems + ([] if ranks == sorted(ranks) else ["the best is not the first"])


def audit_study(run, truth, path_of):
    """Differences between a study's tables and what its bundles say of the test files.

    Args:
        truth: the test table, with ``id`` and ``label``. path_of: from an id to the file of its picture.
    """
    with open(f"{run}/study.json") as file:
        facts = json.load(file)
    tables = {name: pd.read_parquet(f"{run}/{name}.parquet") for name in ("fits", "epochs", "predictions", "pairs")}
    fits, predictions = tables["fits"], tables["predictions"]
    problems = []
    accuracy = {}
    for fit in fits.itertuples():
        mine = predictions[(predictions.model == fit.model) & (predictions.seed == fit.seed)].set_index("id")
        if set(mine.index) != set(truth.id) or (mine.label[truth.id].to_numpy() != truth.label.to_numpy()).any():
            problems.append(f"{fit.model} {fit.seed}: its rows are not the test rows")
        right = float((mine.pred_label[truth.id].to_numpy() == truth.label.to_numpy()).mean())
        accuracy.setdefault(fit.model, []).append(right)
        if not np.isclose(right, fit.test_top1):
            problems.append(f"{fit.model} {fit.seed}: test_top1 {fit.test_top1}, and {right} are right")
        epochs = tables["epochs"].query("model == @fit.model and seed == @fit.seed").sort_values("epoch")
        kept = best_epoch(epochs.to_dict("records"))
        if kept["epoch"] != fit.best_epoch or not np.isclose(kept["validation_top1"], fit.validation_top1):
            problems.append(f"{fit.model} {fit.seed}: epoch {fit.best_epoch}, and {kept['epoch']} is to be kept")
        if fit.arch.startswith("cnn"):  # not torchvision's
            continue
        model, _ = model_of(fit.bundle)
        if sum(parameter.numel() for parameter in model.parameters()) != fit.parameters:
            problems.append(f"{fit.model}: {fit.parameters} parameters")
        found, meta = predict(fit.bundle, [path_of(one) for one in mine.index], reduced=True)
        for (one, row), (label, shares) in zip(mine.iterrows(), found, strict=True):
            share = float(shares[meta["labels"].index(row.pred_label)])
            same = same_confidence(row.pred_score, share, meta["temperature"])
            tied = same_confidence(share, shares.max(), meta["temperature"], tolerance=2 * TOLERANCE)
            if not same or (label != row.pred_label and not tied):
                problems.append(f"{fit.model} {fit.seed} {one}: {row.pred_label} {row.pred_score}, torch says {label}")
    means = {name: float(np.mean(values)) for name, values in accuracy.items()}
    for name, mean in means.items():
        if not np.isclose(facts["models"][name]["top1"], mean):
            problems.append(f"{name}: {facts['models'][name]['top1']}, and the mean over seeds is {mean}")
    if means[facts["best"]] != max(means.values()) or facts["winner"] not in (None, facts["best"]):
        problems.append(f"the best is {facts['best']}, the winner {facts['winner']}")
    for pair in tables["pairs"].itertuples():
        if not np.isclose(pair.difference, means[pair.first] - means[pair.second]):
            problems.append(f"{pair.first} - {pair.second}: {pair.difference}")
    return problems


def latest(out):
    with open(f"{out}/LATEST") as file:
        return f"{out}/{file.read().strip()}"


def read(run, folder):
    """All Parquet files of a folder of a run."""
    return pd.concat([pd.read_parquet(name) for name in sorted(glob.glob(f"{run}/{folder}/*.parquet"))])


def lines_of(message):
    """The line numbers that a message names."""
    return [int(number) for number in re.findall(r"line (\d+)", message)]


def product_answer(images, labels, combination):
    """Probabilities of ``labels`` for one product, by the formulas that docs/products.md gives.

    Args:
        images: a dict of label and probability for each. combination: as ``run.json`` says it.
    """
    rows = np.array([[image[label] for label in labels] for image in images])
    if len(rows) == 1:
        return rows[0]
    if combination["rule"] == "mean":
        logs = np.log(rows.mean(0))
    elif combination["rule"] == "weighted_mean":
        logs = np.log((rows * rows.max(1, keepdims=True)).sum(0) / rows.max(1).sum())
    else:
        foreign, weighted = combination["foreign"], combination["rule"] == "weighted_mixture"
        logs = np.log(np.maximum((1 - foreign) * rows + foreign / len(labels), 1e-6 / len(labels)))
        logs = np.average(logs, axis=0, weights=rows.max(1) if weighted else None)
    powers = np.exp(len(rows) ** combination["growth"] * (logs - logs.max()))
    return powers / powers.sum()


def audit_products(products, predictions, catalog, told, *, group, image="image"):
    """Differences between ``products/`` and what the predictions of all labels make of every product of the catalog.

    Args:
        products, predictions: tables as published; ``topk_labels`` has all labels. catalog: the user's table, one row
            an image. told: ``products`` of ``run.json``.
    """
    problems = []
    if products[group].tolist() != sorted(set(catalog[group])):
        problems.append("the rows are not the catalog's products")
    thresholds = told["thresholds"]
    for row in products.itertuples():
        name = getattr(row, group)
        rows, mine = catalog[catalog[group] == name], predictions[predictions[group] == name]
        if (row.num_images, row.num_failed) != (len(mine), len(rows) - len(mine)):
            problems.append(f"{name}: {row.num_images} images, {row.num_failed} failed")
        if mine.empty:
            if not pd.isna(row.pred_label) or row.decision != "abstain" or not pd.isna(row.pred_score):
                problems.append(f"{name}: {row}")
            continue
        images = [dict(zip(one.topk_labels, one.topk_scores, strict=True)) for one in mine.itertuples()]
        labels = sorted(images[0])
        found = product_answer(images, labels, told["combination"])
        at = labels.index(row.pred_label)
        if found[at] < found.max() - 1e-4 or abs(found[at] - row.pred_score) > 1e-3:
            problems.append(f"{name}: {row.pred_label} {row.pred_score}, not {labels[found.argmax()]} {found.max()}")
        if abs(row.agreement - (mine.pred_label == row.pred_label).mean()) > 1e-6:
            problems.append(f"{name}: agreement {row.agreement}")
        best = max(image[row.pred_label] for image in images)
        [chosen] = [one for one, uri in zip(images, mine[image], strict=True) if uri == row.best_image]
        if chosen[row.pred_label] < best - 1e-6:
            problems.append(f"{name}: best image {row.best_image}")
        accept = thresholds["per_class"].get(row.pred_label, thresholds["accept"])
        sure = row.pred_score >= thresholds["abstain"]
        decision = "accept" if row.pred_score >= accept else "review"
        if row.decision != (decision if sure else "abstain"):
            problems.append(f"{name}: {row.decision} at {row.pred_score}")
    return problems


def audit_levels(predictions, paths, accept):
    """Differences between published rows and what all probabilities and one threshold make of them, by a taxonomy.

    Args:
        predictions: as published; ``topk_labels`` has all labels. paths: of each label, from the root to itself.
            accept: the threshold of classes and ancestors.
    """
    problems = []
    for row in predictions.itertuples():
        shares = dict(zip(row.topk_labels, row.topk_scores, strict=True))
        best = row.topk_labels[0]
        path, depth, score = paths[best], len(paths[best]), shares[best]
        while score < accept and depth > 1:
            depth -= 1
            below = [label for label in paths if paths[label][:depth] == path[:depth]]
            if len(below) == len(paths):
                break
            score = sum(shares[label] for label in below)
        if score < accept or (depth < len(path) and len(below) == len(paths)):
            depth, score = len(path), shares[best]
        told = (row.pred_label, row.label_path, row.depth, row.decision == "accept")
        expected = (path[depth - 1], " > ".join(path[:depth]), depth, score >= accept)
        if abs(score - accept) > 1e-4 and (told != expected or abs(row.pred_score - score) > 1e-4):
            problems.append(f"{told} {row.pred_score}, not {expected} {score}")
    return problems


def recommendation_scores(
    found: pd.DataFrame, rows: pd.DataFrame, as_of: pd.Timestamp, *, new: bool
) -> dict[str, float]:
    """Recall and NDCG of published recommendations."""
    past = rows[rows.time < as_of]
    future = rows[(rows.time >= as_of) & (rows.time < as_of + pd.Timedelta(days=14))]
    future = future[future["product"].isin(set(past["product"])) & future.shopper.isin(set(past.shopper))]
    truth = future[["shopper", "product"]].drop_duplicates()
    if new:
        known = past[["shopper", "product"]].drop_duplicates()
        truth = truth.merge(known, how="left", indicator=True).query("_merge == 'left_only'")
    bought = truth.groupby("shopper")["product"].agg(set)
    recommended = found.sort_values("rank").groupby("shopper")["product"].agg(list)
    recall, ndcg = [], []
    for shopper, wanted in bought.items():
        hits = np.array([product in wanted for product in recommended.get(shopper, [])[:10]], float)
        weights = 1 / np.log2(np.arange(2, 12))
        recall.append(hits.sum() / len(wanted))
        ndcg.append((hits * weights[: len(hits)]).sum() / weights[: min(len(wanted), 10)].sum())
    return {"shoppers": len(bought), "recall": float(np.mean(recall)), "ndcg": float(np.mean(ndcg))}
