/** Rows and panels in their places, each panel with its frame, and asking for its data. */

import { type DataFrame, LoadingState, type ScopedVars, type TimeRange } from '@grafana/data';
import { Icon, PanelChrome, useTheme2 } from '@grafana/ui';
import { useCallback, useEffect, useMemo, useState } from 'react';

import { configured, transformed } from './fields';
import { type Dashboard, type Panel, type RowPanel, type Settings, type Target, isRow } from './model';
import { View } from './panels';
import { intervalOf, prometheus } from './prometheus';
import { noted } from './settled';
import { type Filling, inQuery, inText } from './variables';

const COLUMNS = 24;
const CELL = 30; // pixels, as in Grafana
const GAP = 8;

interface Stretch {
  key: string;
  row?: RowPanel;
  panels: Panel[];
}

/** A dashboard is one list; a row begins a section, and a closed one carries its panels itself. */
export function sections(dashboard: Dashboard): Stretch[] {
  const found: Stretch[] = [];
  for (const panel of dashboard.panels ?? []) {
    if (isRow(panel)) {
      found.push({ key: `row ${panel.id}`, row: panel, panels: [...panel.panels] });
    } else {
      if (!found.length) {
        found.push({ key: 'top', panels: [] });
      }
      found[found.length - 1].panels.push(panel);
    }
  }
  return found;
}

export function Section({
  section,
  filling,
  range,
  settings,
}: { section: Stretch; filling: Filling } & Shared) {
  const everything = new URLSearchParams(window.location.search).has('open');
  const [open, setOpen] = useState(everything || !section.row?.collapsed);
  const [width, setWidth] = useState(window.innerWidth - 32);
  useEffect(() => {
    const measure = () => setWidth(document.documentElement.clientWidth - 32);
    measure();
    window.addEventListener('resize', measure);
    return () => window.removeEventListener('resize', measure);
  }, []);
  const top = Math.min(...section.panels.map((panel) => panel.gridPos?.y ?? 0));
  const bottom = Math.max(
    0,
    ...section.panels.map((panel) => (panel.gridPos?.y ?? 0) + (panel.gridPos?.h ?? 0) - top),
  );
  const column = (width + GAP) / COLUMNS;
  return (
    <>
      {section.row && (
        <div style={{ padding: '6px 0', cursor: 'pointer', fontWeight: 500 }} onClick={() => setOpen(!open)}>
          <Icon name={open ? 'angle-down' : 'angle-right'} /> {inText(section.row.title ?? '', filling)}
        </div>
      )}
      {open && (
        <div style={{ position: 'relative', height: bottom * (CELL + GAP) }}>
          {section.panels.map((panel) => {
            const { x, y, w, h } = panel.gridPos ?? { x: 0, y: 0, w: 12, h: 8 };
            return (
              <div
                key={panel.id}
                style={{ position: 'absolute', left: x * column, top: (y - top) * (CELL + GAP) }}
              >
                <Framed
                  panel={panel}
                  width={w * column - GAP}
                  height={h * (CELL + GAP) - GAP}
                  {...{ filling, range, settings }}
                />
              </div>
            );
          })}
        </div>
      )}
    </>
  );
}

interface Shared {
  filling: Filling;
  range: TimeRange;
  settings: Settings;
}

interface Answer {
  frames?: DataFrame[];
  problem?: string;
  range: Shared['range'];
}

function Framed({
  panel,
  width,
  height,
  filling,
  range,
  settings,
}: { panel: Panel; width: number; height: number } & Shared) {
  const theme = useTheme2();
  const [answer, setAnswer] = useState<Answer>({ range });
  const interval = useMemo(() => intervalOf(range, width, settings.scrape_seconds), [range, width, settings]);
  const full = useMemo(
    () => ({ ...filling, builtin: { ...filling.builtin, ...interval.builtin } }),
    [filling, interval],
  );
  const replace = useCallback(
    (text: string, scoped?: ScopedVars, format?: unknown) => inText(text, full, scoped, format),
    [full],
  ) as never;
  useEffect(() => {
    let gone = false;
    const targets = ((panel.targets ?? []) as unknown as Target[]).filter((target) => !target.hide);
    const tables = targets.filter((target) => target.format === 'table').length;
    const filled = targets.map((target) => ({ ...target, expr: inQuery(target.expr, full) }));
    const asked = Promise.all(filled.map((target) => prometheus.ask(target, range, interval.step, tables)))
      .then((frames) => transformed(panel, frames.flat(), replace))
      .then((frames) => ({ frames: configured(panel, frames, theme, replace), range }))
      .catch((error) => ({ problem: String(error), range }));
    noted(asked).then((answer) => !gone && setAnswer(answer));
    return () => {
      gone = true;
    };
  }, [panel, full, range, interval, theme]);
  const title = inText(panel.title ?? '', full);
  return (
    <PanelChrome
      width={width}
      height={height}
      title={title}
      description={panel.description ? () => inText(panel.description ?? '', full) : undefined}
      statusMessage={answer.problem}
      titleItems={(panel.links ?? []).map((link) => (
        <a
          key={link.title}
          href={inText(link.url ?? '', full)}
          title={link.title}
          target="_blank"
          rel="noreferrer"
        >
          <Icon name="link" />
        </a>
      ))}
      loadingState={answer.problem ? LoadingState.Error : LoadingState.Done}
      displayMode={panel.transparent ? 'transparent' : 'default'}
    >
      {(innerWidth, innerHeight) =>
        answer.frames ? (
          <View
            panel={panel}
            frames={answer.frames}
            range={answer.range}
            width={innerWidth}
            height={innerHeight}
            replace={replace}
          />
        ) : (
          <p>{answer.problem}</p>
        )
      }
    </PanelChrome>
  );
}
