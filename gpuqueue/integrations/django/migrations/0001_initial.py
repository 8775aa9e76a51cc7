"""Declares the two models to Django's migrations; they have no tables, so it creates none."""

from __future__ import annotations

from django.db import migrations, models

OPTIONS = {"managed": False, "base_manager_name": "objects", "default_permissions": ("view", "change")}


def fields() -> list[tuple[str, models.Field]]:
    return [("key", models.CharField(primary_key=True, max_length=255, editable=False, serialize=False))]


class Migration(migrations.Migration):
    initial = True
    dependencies: tuple[tuple[str, str], ...] = ()
    operations = (
        migrations.CreateModel(name="Job", fields=fields(), options=OPTIONS),
        migrations.CreateModel(name="Queue", fields=fields(), options=OPTIONS),
    )
