/** A panel of each kind: the options of the file handed to Grafana's component for it. */

import {
  type DataFrame,
  type FieldDisplay,
  FieldType,
  type GrafanaTheme2,
  type InterpolateFunction,
  type TimeRange,
  VizOrientation,
  getDisplayProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
} from '@grafana/data';
import { BarGaugeDisplayMode, BigValueGraphMode, type Panel as AnyPanel } from '@grafana/schema';
import {
  BarGauge,
  BigValue,
  DataLinksContextMenu,
  TimeSeries,
  TooltipPlugin,
  VizRepeater,
  useTheme2,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { useMemo } from 'react';

import { Heatmap, StateTimeline } from './cells';
import { sourceOf } from './fields';

export interface ViewProps {
  panel: AnyPanel;
  frames: DataFrame[];
  range: TimeRange;
  width: number;
  height: number;
  replace: InterpolateFunction;
}

/** What a file says to one kind of panel; the schema check has held it against Grafana's types. */
type Options = any;

export function View(props: ViewProps) {
  const Kind = KINDS[props.panel.type];
  if (!Kind) {
    return <p>This viewer draws no panels of type {props.panel.type}.</p>;
  }
  const empty = props.frames.every((frame) => frame.length === 0);
  return empty ? <NoData {...props} /> : <Kind {...props} />;
}

function NoData({ panel, height }: ViewProps) {
  const text = panel.fieldConfig?.defaults.noValue ?? 'No data';
  return <div style={{ height, display: 'grid', placeItems: 'center', opacity: 0.7 }}>{text}</div>;
}

function Lines({ panel, frames: given, range, width, height }: ViewProps) {
  const frames = useMemo(() => given.map(drawable), [given]);
  const options: Options = panel.options ?? {};
  const legend = { displayMode: 'list', placement: 'bottom', showLegend: true, calcs: [], ...options.legend };
  const tooltip = options.tooltip ?? {};
  return (
    <TimeSeries
      frames={frames}
      structureRev={frames.length}
      timeRange={range}
      timeZone="browser"
      width={width}
      height={height}
      legend={legend}
      options={options}
    >
      {(config, aligned) => (
        <TooltipPlugin
          config={config}
          data={aligned}
          frames={frames}
          mode={tooltip.mode ?? 'single'}
          sortOrder={tooltip.sort}
          timeZone="browser"
        />
      )}
    </TimeSeries>
  );
}

/** 0/0 and 1/0 are no points of a line; as values they would leave the axis without an end. */
function drawable(frame: DataFrame): DataFrame {
  const finite = (value: number | null) => (value !== null && Number.isFinite(value) ? value : null);
  const fields = frame.fields.map((field) =>
    field.type === FieldType.number ? { ...field, values: field.values.map(finite) } : field,
  );
  return { ...frame, fields };
}

function Stat(props: ViewProps) {
  const options: Options = props.panel.options ?? {};
  return (
    <Repeated {...props} sparkline={options.graphMode !== 'none'}>
      {({ value, width, height, alignmentFactors, count }, theme) => (
        <BigValue
          value={value.display}
          sparkline={value.sparkline}
          colorMode={options.colorMode ?? 'value'}
          graphMode={options.graphMode ?? BigValueGraphMode.Area}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          text={options.text}
          alignmentFactors={alignmentFactors}
          disableWideLayout={options.wideLayout === false}
          count={count}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    </Repeated>
  );
}

function Bars(props: ViewProps) {
  const options: Options = props.panel.options ?? {};
  return (
    <Repeated {...props} sparkline={false}>
      {({ value, width, height, orientation, alignmentFactors, count }, theme) => (
        <Linked value={value}>
          <BarGauge
            value={value.display}
            field={value.field}
            display={
              value.view?.getFieldDisplayProcessor(value.colIndex ?? 0) ??
              getDisplayProcessor({ field: { config: value.field } as never, theme })
            }
            text={options.text}
            displayMode={options.displayMode ?? BarGaugeDisplayMode.Gradient}
            showUnfilled={options.showUnfilled ?? true}
            valueDisplayMode={options.valueMode}
            namePlacement={options.namePlacement}
            orientation={orientation}
            itemSpacing={10}
            alignmentFactors={alignmentFactors}
            width={width}
            height={height}
            theme={theme}
          />
        </Linked>
      )}
    </Repeated>
  );
}

function Linked({ value, children }: { value: FieldDisplay; children: React.JSX.Element }) {
  return value.hasLinks && value.getLinks ? (
    <DataLinksContextMenu links={value.getLinks}>{() => children}</DataLinksContextMenu>
  ) : (
    children
  );
}

interface One {
  value: FieldDisplay;
  width: number;
  height: number;
  orientation: VizOrientation;
  alignmentFactors: ReturnType<typeof getDisplayValueAlignmentFactors>;
  count: number;
}

function Repeated(
  props: ViewProps & { sparkline: boolean; children: (one: One, theme: GrafanaTheme2) => React.JSX.Element },
) {
  const theme = useTheme2();
  const { panel, frames, width, height, replace, sparkline, children } = props;
  const options: Options = panel.options ?? {};
  const values = useMemo(
    () =>
      getFieldDisplayValues({
        data: frames,
        reduceOptions: { calcs: ['lastNotNull'], ...options.reduceOptions },
        fieldConfig: sourceOf(panel),
        replaceVariables: replace,
        sparkline,
        theme,
        timeZone: 'browser',
      }),
    [frames, panel, theme],
  );
  return (
    <VizRepeater<FieldDisplay, One['alignmentFactors']>
      getValues={() => values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={(one) => children(one as One, theme)}
      source={frames}
      renderCounter={0}
      autoGrid
      orientation={options.orientation ?? VizOrientation.Auto}
      minVizHeight={options.minVizHeight ?? 16}
      maxVizHeight={panel.type === 'bargauge' ? (options.maxVizHeight ?? 300) : undefined}
      itemSpacing={panel.type === 'bargauge' ? 10 : 3}
      width={width}
      height={height}
    />
  );
}

function Table({ panel, frames, range, width, height }: ViewProps) {
  const options: Options = panel.options ?? {};
  const frame = frames[options.frameIndex ?? 0] ?? frames[0];
  return (
    <TableNG
      data={frame}
      width={width}
      height={height}
      sortBy={options.sortBy}
      noHeader={options.showHeader === false}
      cellHeight={options.cellHeight}
      enablePagination={options.enablePagination}
      fieldConfig={sourceOf(panel)}
      timeRange={range}
      resizable
    />
  );
}

const KINDS: Record<string, (props: ViewProps) => React.JSX.Element> = {
  timeseries: Lines,
  stat: Stat,
  bargauge: Bars,
  table: Table,
  heatmap: Heatmap,
  'state-timeline': StateTimeline,
};
