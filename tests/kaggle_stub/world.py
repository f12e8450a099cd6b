"""The state of the stub and its answers: each method answers the call it is named as. Switches play failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Reply = tuple[int, dict[str, Any]]
DATE = "2026-01-01T00:00:00.000Z"
LOG = '[{"stream_name":"stdout","time":1.0,"data":"8/8 studies, 3 s\\n"}\n]'
CAPACITY = "Maximum batch GPU session count of 2 reached."
QUOTA = "Maximum weekly GPU quota of 30.00 hours reached."
REFUSED = {"code": 403, "message": "Permission was denied"}


@dataclass
class World:
    """Failure switches are fields: set one, and the next calls fail in that way.

    refuse[call]: a whole reply instead of the answer; ``push_error``: text of a push refused with code 200 (the client
    then exits 0); ``put_status``: of blobs; ``lose``: names of files that uploads drop without a word; ``not_valid``:
    sources that a push leaves out; ``ready_after``: polls until a data set is ready (-1: never); ``run``: states of a
    kernel's run, the last for ever; ``stale``: a new version does not change the number.
    """

    base: str
    refuse: dict[str, Reply] = field(default_factory=dict)
    push_error: str = ""
    put_status: int = 200
    lose: frozenset[str] = frozenset()
    not_valid: frozenset[str] = frozenset()
    ready_after: int = 1
    run: tuple[str, ...] = ("QUEUED", "RUNNING", "COMPLETE")
    failure_message: str = ""
    log: str = LOG  # once the run has ended
    log_running: str = LOG
    stale: bool = False
    unnumbered: bool = False  # a push is accepted without a version
    forget_submission: bool = False
    scored: dict[str, Any] = field(default_factory=lambda: {"status": "PENDING"})  # of every submission
    enable_internet_anyway: bool = False  # the service runs with other settings than were sent
    outputs: dict[str, bytes] = field(default_factory=dict)  # of the kernel
    data: dict[str, bytes] = field(default_factory=dict)  # files of the competition
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)
    blobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    sets: dict[str, list[list[str]]] = field(default_factory=dict)  # data set -> versions -> tokens
    models: dict[str, list[list[str]]] = field(default_factory=dict)  # model variation -> the same
    known_models: set[str] = field(default_factory=set)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    polls: int = 0
    status: str = ""
    running: Iterator[str] = field(default_factory=lambda: iter(()))

    def call(self, name: str, request: dict[str, Any]) -> Reply:
        self.seen.append((name, request))
        if name in self.refuse:
            return self.refuse[name]
        answer = getattr(self, name, None)
        return answer(request) if answer else (404, {"code": 404, "message": f"the stub has no {name}"})

    def sent(self, name: str) -> list[dict[str, Any]]:
        """The requests of one call so far."""
        return [request for call, request in self.seen if call == name]

    def file(self, name: str) -> tuple[int, bytes]:
        kind, _, path = name.partition("/")
        found = {"output": self.outputs, "data": self.data}.get(kind, {}).get(path)
        return (404, b"<html>not here</html>") if found is None else (200, found)

    def put(self, token: str, body: bytes) -> int:
        if self.put_status == 200:
            self.blobs[token]["bytes"] = body
        return self.put_status

    # blobs

    def StartBlobUpload(self, r: dict[str, Any]) -> Reply:
        token = f"token-{len(self.blobs) + 1}"
        self.blobs[token] = dict(r)
        return 200, {"token": token, "createUrl": f"{self.base}/upload/{token}"}

    def _kept(self, body: dict[str, Any]) -> list[str]:
        tokens = [entry["token"] for entry in body.get("files", [])]
        return [token for token in tokens if self.blobs[token]["name"] not in self.lose]

    def _names(self, tokens: list[str], size: str) -> list[dict[str, Any]]:
        blobs = [self.blobs[token] for token in tokens]
        return [{"name": blob["name"], size: len(blob["bytes"]), "creationDate": DATE} for blob in blobs]

    # data sets

    def GetDatasetStatus(self, r: dict[str, Any]) -> Reply:
        if f"{r['ownerSlug']}/{r['datasetSlug']}" not in self.sets:
            return 404, {"code": 404, "message": "Not found"}
        self.polls += 1
        ready = self.ready_after >= 0 and self.polls > self.ready_after
        return 200, {"status": "READY" if ready else "BLOBS_RECEIVED"}

    def CreateDataset(self, r: dict[str, Any]) -> Reply:
        return self._version(f"{r['ownerSlug']}/{r['slug']}", r)

    def CreateDatasetVersion(self, r: dict[str, Any]) -> Reply:
        return self._version(f"{r['ownerSlug']}/{r['datasetSlug']}", r["body"])

    def _version(self, ref: str, body: dict[str, Any]) -> Reply:
        versions = self.sets.setdefault(ref, [])
        if not (self.stale and versions):
            versions.append(self._kept(body))
        self.polls = 0
        return 200, {"ref": "/" + ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"}

    def GetDataset(self, r: dict[str, Any]) -> Reply:
        ref = f"{r['ownerSlug']}/{r['datasetSlug']}"
        return 200, {"ref": ref, "currentVersionNumber": len(self.sets[ref])}

    def ListDatasetFiles(self, r: dict[str, Any]) -> Reply:
        versions = self.sets[f"{r['ownerSlug']}/{r['datasetSlug']}"]
        tokens = versions[int(r.get("datasetVersionNumber") or len(versions)) - 1]
        start, count = int(r.get("pageToken") or 0), int(r.get("pageSize") or 20)
        reply: dict[str, Any] = {"datasetFiles": self._names(tokens[start : start + count], "totalBytes")}
        return 200, reply | ({"nextPageToken": str(start + count)} if start + count < len(tokens) else {})

    # models

    def GetModel(self, r: dict[str, Any]) -> Reply:
        ref = f"{r['ownerSlug']}/{r['modelSlug']}"
        return (200, {"ref": ref, "slug": r["modelSlug"]}) if ref in self.known_models else (403, REFUSED)

    def CreateModel(self, r: dict[str, Any]) -> Reply:
        self.known_models.add(f"{r['ownerSlug']}/{r['slug']}")
        return 200, {"id": len(self.known_models), "url": f"https://www.kaggle.com/models/{r['ownerSlug']}/{r['slug']}"}

    def CreateModelInstance(self, r: dict[str, Any]) -> Reply:
        body = r["body"]
        return self._variation(f"{r['ownerSlug']}/{r['modelSlug']}", body["framework"], body["instanceSlug"], body)

    def CreateModelInstanceVersion(self, r: dict[str, Any]) -> Reply:
        return self._variation(f"{r['ownerSlug']}/{r['modelSlug']}", r["framework"], r["instanceSlug"], r["body"])

    def _variation(self, model: str, framework: str, slug: str, body: dict[str, Any]) -> Reply:
        if model not in self.known_models:
            return 403, REFUSED
        self.models.setdefault(f"{model}/{framework}/{slug}", []).append(self._kept(body))
        return 200, {"id": 1, "url": f"https://www.kaggle.com/models/{model}/{framework}/{slug}"}

    def _of(self, r: dict[str, Any]) -> list[list[str]] | None:
        return self.models.get(f"{r['ownerSlug']}/{r['modelSlug']}/{r['framework']}/{r['instanceSlug']}")

    def ListModelInstanceVersions(self, r: dict[str, Any]) -> Reply:
        if (versions := self._of(r)) is None:
            return 403, REFUSED
        numbers = range(len(versions), 0, -1)
        return 200, {"versionList": {"versions": [{"versionNumber": n, "isPrivate": True} for n in numbers]}}

    def ListModelInstanceVersionFiles(self, r: dict[str, Any]) -> Reply:
        versions, number = self._of(r), int(r.get("versionNumber") or 0)
        if versions is None or not 0 < number <= len(versions):
            return 403, REFUSED
        return 200, {"files": self._names(versions[number - 1], "size")}

    # kernels

    def SaveKernel(self, r: dict[str, Any]) -> Reply:
        if self.push_error:
            return 200, {"error": self.push_error}
        kernel = self.kernels.setdefault(r["slug"], {"version": 0})
        kernel.update(version=kernel["version"] + 1, request=r)
        self.running = iter(self.run[:-1])
        url = f"https://www.kaggle.com/code/{r['slug']}"
        reply: dict[str, Any] = {"ref": f"/code/{r['slug']}", "url": url}
        for kind in ("Dataset", "Competition", "Model"):
            sources = r.get(f"{kind.lower()}DataSources", [])
            reply[f"invalid{kind}Sources"] = [source for source in sources if source in self.not_valid]
        return 200, reply if self.unnumbered else reply | {"versionNumber": kernel["version"]}

    def GetKernel(self, r: dict[str, Any]) -> Reply:
        ref = f"{r['userName']}/{r['kernelSlug'].split('/')[0]}"
        if ref not in self.kernels:
            return 403, REFUSED
        sent = self.kernels[ref]["request"]
        facts = {
            "ref": ref,
            "title": sent["newTitle"],
            "language": "python",
            "kernelType": sent["kernelType"],
            "isPrivate": sent.get("isPrivate", True),
            "enableGpu": sent.get("enableGpu", False),
            "enableInternet": self.enable_internet_anyway or sent.get("enableInternet", True),
            "machineShape": sent.get("machineShape", ""),
            "currentVersionNumber": self.kernels[ref]["version"],
            "dockerImage": "gcr.io/kaggle-private-byod/python@sha256:" + "0" * 64,
        }
        for kind in ("dataset", "competition", "kernel", "model"):
            sources = sent.get(f"{kind}DataSources", [])
            facts[f"{kind}DataSources"] = [source for source in sources if source not in self.not_valid]
        slug = r["kernelSlug"].split("/")[0]
        blob = {"source": sent["text"], "language": "python", "kernelType": "script", "slug": slug}
        return 200, {"metadata": facts, "blob": blob}

    def GetKernelSessionStatus(self, r: dict[str, Any]) -> Reply:
        ref = f"{r['userName']}/{r['kernelSlug']}"
        if ref not in self.kernels:
            return 403, REFUSED
        if int(str(r.get("versionLabel") or "v1").removeprefix("v")) > self.kernels[ref]["version"]:
            return 404, {"code": 404, "message": "Kernel version not found"}
        self.status = next(self.running, self.run[-1])
        failed = {"failureMessage": self.failure_message} if self.status == "ERROR" else {}
        return 200, {"status": self.status} | failed

    def ListKernelSessionOutput(self, r: dict[str, Any]) -> Reply:
        files = [{"fileName": name, "url": f"{self.base}/files/output/{name}"} for name in sorted(self.outputs)]
        return 200, {"files": files, "log": self.log_running if self.status == "RUNNING" else self.log}

    def GetAcceleratorQuotaStatistics(self, r: dict[str, Any]) -> Reply:
        quota = {"timeUsed": "3600s", "totalTimeAllowed": "108000s"}
        return 200, {"quotaRefreshTime": DATE, "gpuQuota": quota}

    # competitions

    def ListDataFiles(self, r: dict[str, Any]) -> Reply:
        files = [{"name": name, "totalBytes": len(data), "creationDate": DATE} for name, data in self.data.items()]
        return 200, {"files": files}

    def DownloadDataFiles(self, r: dict[str, Any]) -> Reply:
        return 302, {"to": f"{self.base}/files/data/{r['competitionName']}.zip"}

    def DownloadDataFile(self, r: dict[str, Any]) -> Reply:
        return 302, {"to": f"{self.base}/files/data/{r['fileName']}"}

    def CreateCodeSubmission(self, r: dict[str, Any]) -> Reply:
        if not self.forget_submission:
            self.submissions.append(r)
        return 200, {"message": f"Successfully submitted to {r['competitionName']}", "ref": len(self.submissions)}

    def GetSubmission(self, r: dict[str, Any]) -> Reply:
        return 200, {"ref": int(r["ref"]), "date": DATE, **self.scored}

    def GetSubmissionLimits(self, r: dict[str, Any]) -> Reply:
        return 200, {"numToday": 1, "numTotal": 1, "numAllowedNow": 4}

    def ListSubmissions(self, r: dict[str, Any]) -> Reply:
        made = [
            {
                "ref": number,
                "date": DATE,
                **self.scored,
                "fileName": sent.get("fileName", "submission.csv"),
                "description": sent.get("submissionDescription", ""),
            }
            for number, sent in enumerate(self.submissions, 1)
        ]
        return 200, {"submissions": made[::-1]}
