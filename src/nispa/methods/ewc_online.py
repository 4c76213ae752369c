"""Online EWC: one running term, anchored where the last task ended.

Schwarz et al. 2018, arXiv 1805.06370. After task t, with the Fisher information F_t of EWC,

    Omega <- gamma Omega + F_t,  theta* <- theta_t

A ``gamma`` below 1 forgets old tasks gracefully. EWC's sum holds each task's values where that
task left them; here all are held where the last task left them.

Differences from the paper: only its consolidation is here, not its two networks (progress and
compress). Each F_t counts as measured, so tasks with larger gradients weigh more. No factor of one
half. Differences from the published comparison: its code has ``gamma`` 1, and no published run uses
this method; otherwise as in ``ewc``.
"""

from __future__ import annotations

from nispa.base.config import setting, settings
from nispa.methods.ewc import Ewc, EwcConfig
from nispa.methods.regularised import Values


@settings
class EwcOnlineConfig(EwcConfig):
    """Settings of online EWC."""

    gamma: float = setting(
        1.0, "share of the importances before that stays with each new task", ge=0, le=1
    )


class EwcOnline(Ewc):
    """One penalty with running importances."""

    name = "ewc-online"
    published = "Schwarz et al., ICML 2018"
    config_class = EwcOnlineConfig
    config: EwcOnlineConfig

    def add_term(self, fisher: Values) -> None:
        """Lets earlier importances decay and adds the new ones, around the current values."""
        gamma = self.config.gamma
        self.hold(
            {
                name: new + gamma * self.importance[name] if self.importance else new
                for name, new in fisher.items()
            }
        )
