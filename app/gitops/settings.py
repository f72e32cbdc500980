"""What both GitOps sweepers share: the switch that registers them."""

from app.core.config import variable
from app.core.values import Bool
from app.sweeping.sweeper import SweeperSettings


class GitopsSettings(SweeperSettings):
    """Off by default: then neither sweeper is registered, and their tables are never read."""

    gitops: Bool = variable("SB_WORKER_GITOPS_ENABLED", default="false", meaning="whether ArgoCD is watched")

    @property
    def enabled(self) -> bool:
        """Only when switched on."""
        return self.gitops

    @property
    def switch(self) -> str:
        """The one of both."""
        return "SB_WORKER_GITOPS_ENABLED"
