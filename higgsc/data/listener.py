"""Which Whisper listened to the references of a store; what it heard means nothing to a projector of another one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from higgsc.contract.jobs import WhisperRef


class Listener(BaseModel):
    """In `store.json`, and beside an adapter that was trained with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    """Hub id or folder, as the spec names it."""
    revision: str | None
    width: int
    """Features of a frame."""
    fingerprint: str
    """Of what it hears; see `higgsc.data.whisper.WhisperEncoder.fingerprint`."""

    @property
    def ref(self) -> WhisperRef:
        """As a job names it."""
        return WhisperRef(encoder=self.encoder, revision=self.revision, width=self.width)

    def __str__(self) -> str:
        at = "" if self.revision is None else f" at revision {self.revision}"
        return f"`{self.encoder}`{at} ({self.fingerprint[:12]})"
