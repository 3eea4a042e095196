"""A module for 3D Slicer: ask the synthesis server for what a study lacks, and show it beside the acquired images.

In Slicer: Edit > Application Settings > Modules > Additional module paths: the folder of this file. It is then under
Modules > Synthesis. Research software, not a medical device.
"""

import tempfile

import ctk
import qt
import slicer
from AptSynthesisLib.client import SynthesisClient
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

ALL = "all that is lacking"


class AptSynthesis(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "APT synthesis"
        self.parent.categories = ["Synthesis"]
        self.parent.contributors = ["apt_monai"]
        self.parent.helpText = "The missing contrasts of a brain MR study. Research software, not a medical device."
        self.parent.acknowledgementText = "APT (CVPR 2025) on MONAI."


class AptSynthesisWidget(ScriptedLoadableModuleWidget):
    """Server, study, model, contrast; two buttons."""

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        box = ctk.ctkCollapsibleButton()
        box.text = "Synthesis"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.address = qt.QLineEdit("http://127.0.0.1:8000")
        self.study, self.model, self.target = qt.QComboBox(), qt.QComboBox(), qt.QComboBox()
        self.raw = qt.QCheckBox()
        for label, widget in (
            ("Server", self.address),
            ("Study", self.study),
            ("Model", self.model),
            ("Contrast", self.target),
            ("As scanned, with skull", self.raw),
        ):
            form.addRow(f"{label}:", widget)
        for text, action in (
            ("Connect", self.connect_to_server),
            ("Load acquired images", self.load_acquired),
            ("Synthesise and load", self.synthesize),
        ):
            button = qt.QPushButton(text)
            button.connect("clicked()", action)
            form.addRow(button)
        self.study.connect("currentIndexChanged(int)", self.show_models)
        self.model.connect("currentIndexChanged(int)", self.show_targets)
        self.client, self.models, self.studies = None, {}, {}
        self.layout.addStretch(1)

    def connect_to_server(self):
        with slicer.util.tryWithErrorDisplay("The server did not answer as expected.", waitCursor=True):
            self.client = SynthesisClient(self.address.text)
            self.models, self.studies = self.client.models(), self.client.studies()
            self.study.clear()
            self.study.addItems([name for name, study in self.studies.items() if not study["problem"]])

    def show_models(self):
        self.model.clear()
        self.model.addItems(list(self.studies.get(self.study.currentText, {}).get("lacking", {})))

    def show_targets(self):
        self.target.clear()
        self.target.addItems([ALL, *self.models.get(self.model.currentText, {})])

    def load_acquired(self):
        with slicer.util.tryWithErrorDisplay("The images could not be loaded.", waitCursor=True):
            self.load(self.client.acquired_images(self.studies[self.study.currentText]))

    def synthesize(self):
        with slicer.util.tryWithErrorDisplay("Nothing was synthesised.", waitCursor=True):
            target = None if self.target.currentText == ALL else self.target.currentText
            self.load(self.client.synthesize(self.model.currentText, self.study.currentText, target, self.raw.checked))

    def load(self, images):
        """Each image as a volume of its name; the last is shown over the others."""
        with tempfile.TemporaryDirectory() as folder:
            for image in images:
                volume = slicer.util.loadVolume(str(self.client.download(image, folder)))
                volume.SetName(image)
        slicer.util.setSliceViewerLayers(foreground=volume, foregroundOpacity=0.5)
